"""The long form of ``test_oracle.py``: many random histories, new ones each time.

python -m tests.fault.oracle [NUMBER] [--workers N]     in blocks of 200, each a line of docs/bench/oracle.jsonl
python -m tests.fault.oracle --replay SEED              a block of that file once more

Seeds that the file has are not taken again, so that two runs add up. Ends with 1 if a history failed,
after all others, with the shortest one that does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.bench import harness
from tests.fault.histories import Histories
from tests.fault.table_histories import TableHistories

STEPS = 20
BLOCK = 200
# Folders in memory: a history is some thousand small files that are written through to the disk.
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What came of the histories of one seed."""

    seed: int
    num_histories: int
    seconds: float
    counts: dict[str, int]
    failure: str


def main() -> None:
    """Runs the histories that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("number", type=int, nargs="?", default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that work at once")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one block once more; nothing is recorded")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        block = run_block(arguments.replay)
        sys.exit(block.failure or "no history of this seed fails")
    failures = []
    started, done = time.perf_counter(), 0
    for block in run_blocks(arguments.number, arguments.workers):
        done += block.num_histories
        record(block)
        print(f"{done} of {arguments.number} histories in {time.perf_counter() - started:.0f} s", flush=True)
        if block.failure:
            failures.append(block)
            print(f"seed {block.seed} fails:\n{block.failure}", flush=True)
    if failures:
        seeds = ", ".join(str(block.seed) for block in failures)
        sys.exit(f"histories fail: python -m tests.fault.oracle --replay SEED with SEED of {seeds}")


def run_blocks(number: int, workers: int) -> Iterator[Block]:
    """The blocks of ``number`` new histories, as they end."""
    seeds = itertools.islice(new_seeds(), math.ceil(number / BLOCK))
    # A process for each block: what one history leaves in memory is not carried through thousands of others.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(run_block, block_seed) for block_seed in seeds]):
            yield future.result()


def run_block(block_seed: int) -> Block:
    """Runs the histories of one seed."""
    logging.disable(logging.WARNING)
    if MEMORY.is_dir():
        tempfile.tempdir = str(MEMORY)
    form = settings(
        max_examples=BLOCK,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    Histories.done = Counter()
    started, failure = time.perf_counter(), ""
    try:
        run_state_machine_as_test(seed(block_seed)(kind_of(block_seed)), settings=form)
    except Exception:
        failure = traceback.format_exc()
    return Block(
        seed=block_seed,
        num_histories=BLOCK,
        seconds=time.perf_counter() - started,
        counts=dict(sorted(Histories.done.items())),
        failure=failure,
    )


def kind_of(block_seed: int) -> type[Histories]:
    """Files and tables in turn."""
    return TableHistories if block_seed % 2 else Histories


def record(block: Block) -> None:
    """Appends a block to the results."""
    config = {
        "kind": kind_of(block.seed).__name__,
        "seed": block.seed,
        "histories": block.num_histories,
        "steps": STEPS,
        "seconds": round(block.seconds),
        "done": block.counts,
        "failure": block.failure[-2000:],
    }
    checks = [block.counts.get("check", 0)]
    harness.record("oracle", "lodestream", "refreshes equal to a rebuild", "", checks, x=block.seed, config=config)


def new_seeds() -> Iterator[int]:
    """The seeds that the results do not have."""
    path = harness.RESULTS / "oracle.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    used = {json.loads(line)["config"]["seed"] for line in lines}
    return (number for number in itertools.count() if number not in used)


if __name__ == "__main__":
    main()
