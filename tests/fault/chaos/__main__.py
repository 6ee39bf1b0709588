"""The long form: ``python -m tests.fault.chaos [KIND ...] [--seconds S]``, several minutes a back-end.

Each run appends a line to docs/bench/chaos.jsonl; the last one, without the fence, must lose something.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lodestream.storage.steps import STEPS
from tests.bench.harness import RESULTS, commit, machine
from tests.fault.chaos.harness import LAST_WINDOW, ChaosPlan, ChaosRun
from tests.fault.chaos.places import make_location
from tests.fault.chaos.setup import ChaosSetup
from tests.fault.chaos.verdict import ChaosReport
from tests.support import servers
from tests.support.registers import KINDS
from tests.support.servers import Server

RUNNERS = {
    "object": servers.run_s3,
    "etcd": servers.run_etcd,
    "postgres": servers.run_postgres,
    "redis": servers.run_redis,
}
# An object store of the tests forgets its data when it is restarted.
RESTARTED = ("etcd", "postgres", "redis")
UNFENCED = "unfenced"
UNFENCED_PLAN: dict[str, Any] = {"windows": LAST_WINDOW}
RESULTS_FILE = RESULTS / "chaos.jsonl"


@contextlib.contextmanager
def open_setup(kind: str, *, is_fenced: bool) -> Iterator[tuple[ChaosSetup, Server | None]]:
    """A store of the kind in a temporary folder, with its server."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ls-chaos-")))
        server = stack.enter_context(RUNNERS[kind]()) if kind in RUNNERS else None
        location = make_location(kind, folder, lambda _: server)
        # What takes an object store a second must not count as a sign of death.
        ttl_s = 3.0 if kind == "object" else 1.0
        log = folder / "log.jsonl"
        setup = ChaosSetup(location=location, log=log, is_fenced=is_fenced, ttl_s=ttl_s, retained_s=6 * ttl_s)
        yield setup, server


def run_slice(kind: str, *, seconds: float, seed: int, is_fenced: bool = True) -> ChaosReport:
    """One run on a new store."""
    with open_setup(kind, is_fenced=is_fenced) as (setup, server):
        rough = {} if is_fenced else UNFENCED_PLAN
        plan = ChaosPlan(
            duration_s=seconds,
            longest_s=seconds,
            stopped_s=(2.5 if is_fenced else 4.0) * setup.ttl_s,
            restart_every_s=20.0 if kind in RESTARTED else 0.0,
            seed=seed,
            **rough,
        )
        report = ChaosRun(setup, plan, server=server).run()
    write_down(kind if is_fenced else f"{kind}, {UNFENCED}", plan, report)
    return report


def write_down(provider: str, plan: ChaosPlan, report: ChaosReport) -> None:
    """Appends one line to the results, and prints it."""
    values: dict[str, Any] = {
        field.name: value
        for field in dataclasses.fields(report)
        if isinstance(value := getattr(report, field.name), int)
    }
    line = {
        "name": "chaos",
        "provider": provider,
        **values,
        "num_faults": len(report.faults),
        "num_refused": dict(report.num_refused),
        "steps_hit": dict(report.steps_hit),
        "config": dataclasses.asdict(plan) | {"windows": len(plan.windows)},
        "commit": commit(),
        "machine": machine(),
        "command": " ".join(["python -m tests.fault.chaos", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    RESULTS_FILE.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS_FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{provider}: {values}, faults: {report.faults[:5]}", flush=True)


def main() -> int:
    """Returns 1 if something was lost that had to be kept, or nothing was lost where the fence was away."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.chaos", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS, UNFENCED], help="which back-ends, and 'unfenced'")
    parser.add_argument("--seconds", type=float, default=240.0, help="for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="add to the results that are there")
    options = parser.parse_args()
    if not options.keep:
        RESULTS_FILE.unlink(missing_ok=True)
    failed = False
    for kind in options.kinds:
        if kind == UNFENCED:
            report = run_slice("local", seconds=options.seconds, seed=options.seed, is_fenced=False)
            failed |= report.num_lost + report.num_duplicate == 0
        else:
            report = run_slice(kind, seconds=options.seconds, seed=options.seed)
            failed |= not report.is_clean
            missed = [step for step in STEPS if step not in report.steps_hit]
            print(f"{kind}: steps not hit in this run: {missed}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
