"""What is printed of a run, and the lines of its benchmark file, in the form of ``docs/bench/*.jsonl``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from lodestream.kernels.gpu_check.speed import OURS, WHOLE, Case
from lodestream.kernels.gpu_check.target import Roofs

_NAME: Final = "gpu_check"
_PACKAGES: Final = ("lodestream", "torch", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Attributes:
    path: the benchmark file; None writes none.
    machine, command: as each line has them.
    """

    path: Path | None
    machine: str
    command: str

    def start(self) -> None:
        """Empties the file, so that it holds one run."""
        if self.path is not None:
            self.path.write_text("", encoding="utf-8")

    def add_roofs(self, roofs: Roofs) -> None:
        """Prints and writes the roofs of the device."""
        print(
            f"roofs: {roofs.bytes_per_s / 1e9:,.0f} GB/s of a copy, {roofs.flops_per_s / 1e12:,.0f} TFLOP/s in bfloat16"
        )
        self._write("device", "roof, copy", "GB/s", [roofs.bytes_per_s / 1e9])
        self._write("device", "roof, bfloat16 product", "TFLOP/s", [roofs.flops_per_s / 1e12])

    def add_case(self, case: Case, times_ms: dict[str, list[float]], roofs: Roofs) -> None:
        """Prints and writes the times of one case, each as a share of the best baseline, ours as one of the roof."""
        medians = {name: statistics.median(values) for name, values in times_ms.items() if values}
        title = f"{case.kernel}, {case.case}, {case.x:,} tokens"
        if not medians:
            print(f"{title}: ran as {'; '.join(times_ms)}")
            return
        baselines = {name: value for name, value in medians.items() if name not in (OURS, WHOLE)}
        best = min(baselines.values(), default=float("nan"))
        print(title)
        for name, value in medians.items():
            print(f"    {name:<28} {value:10.4f} ms   {value / best:6.2f} of the best baseline")
        for name, values in times_ms.items():
            self._write(name, "time", "ms", values, case)
        if OURS in medians:
            fraction = find_fraction(case, medians[OURS], roofs)
            print(f"    {fraction:.0%} of the roof of a {'copy' if case.num_bytes else 'product'}")
            self._write(OURS, "share of the roof", "share", [fraction], case)

    def _write(self, provider: str, metric: str, unit: str, values: Sequence[float], case: Case | None = None) -> None:
        if self.path is None:
            return
        ordered = sorted(values)
        p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
        line = {
            "name": _NAME,
            "provider": provider,
            "metric": metric,
            "unit": unit,
            "x": None if case is None else case.x,
            "p20": p20,
            "p50": p50,
            "p80": p80,
            "num_values": len(values),
            "config": {} if case is None else {"kernel": case.kernel, "case": case.case},
            "versions": {name: version for name in _PACKAGES if (version := _find_version(name))},
            "machine": self.machine,
            "command": self.command,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def find_fraction(case: Case, time_ms: float, roofs: Roofs) -> float:
    """How near a time comes to what the device could do: 1 is the roof."""
    least_s = case.num_bytes / roofs.bytes_per_s + case.flops / roofs.flops_per_s
    return least_s / (time_ms / 1e3)


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
