"""What every benchmark shares: how a measurement is recorded, and with what it was made.

A benchmark appends JSON lines to ``docs/bench/<name>.jsonl``; the README's and the documents' numbers are read from
there.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "bench"
T = TypeVar("T")

VERSIONS_OF = ("torch", "numpy", "pyarrow", "pylance", "ray", "tokenizers")


def record(
    name: str,
    provider: str,
    metric: str,
    unit: str,
    values: Sequence[float],
    x: float | str | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Appends one measurement and prints it.

    Args:
        name: the benchmark, also the file's name.
        provider: whose figure it is ("lodestream bf16", "sentence-transformers").
        metric, unit: what was measured, in what.
        values: the repetitions; p20, p50 and p80 of them are kept.
        x: the place on the horizontal axis, where there is one.
        config: settings that the figure depends on.
    """
    p20, p50, p80 = _quantiles(values)
    line = {
        "name": name,
        "provider": provider,
        "metric": metric,
        "unit": unit,
        "x": x,
        "p20": p20,
        "p50": p50,
        "p80": p80,
        "num_values": len(values),
        "config": dict(config or {}),
        "versions": {package: version for package in VERSIONS_OF if (version := _version(package))},
        "commit": commit(),
        "machine": machine(),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    what = metric if x is None else f"{metric}, {x}"
    spread = f"{p20:.4g} to {p80:.4g}, n {len(values)}" if len(values) > 1 else ""
    print(f"{provider:<48} {what:<72} {p50:>10.4g} {unit:<12} {spread}".rstrip(), flush=True)
    return line


def start(name: str) -> None:
    """Empties the results of a benchmark, so that the file holds one run of it."""
    (RESULTS / f"{name}.jsonl").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one call took: on the clock, and of all processors together. The latter is what a machine that has other
    work to do changes least."""

    seconds: float
    cpu_seconds: float


def measure_time(work: Callable[[], object]) -> Timing:
    """Runs ``work`` once; its processor time is that of this process, all threads."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return Timing(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)


def interleave(rounds: int, providers: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Calls the providers in turn, ``rounds`` times each: what disturbs the machine disturbs all of them alike."""
    values: dict[str, list[T]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, measure in providers.items():
            values[name].append(measure())
    return values


def machine() -> str:
    """Processor, cores and memory in a few words."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that was measured, marked where files differ from it; the results themselves do not count."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS.parent.parent)
    return done.stdout.strip()
