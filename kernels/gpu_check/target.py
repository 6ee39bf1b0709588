"""Where the check runs: the GPU of this machine, or Triton's interpreter on its CPU.

The interpreter runs the same script over tiny inputs, so that it is tested where there is no GPU. It computes bfloat16
wrongly when left alone, and is no machine to take times of.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

# Larger than any level-2 cache: what a kernel reads comes from memory, as in an encoder.
_FLUSH_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Attributes:
    device: "cuda", or "cpu" for the interpreter.
    rounds: how often each form is timed; 0 runs it once and takes no time.
    """

    device: torch.device
    rounds: int

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes that are checked."""
        return (torch.float32, torch.bfloat16, torch.float16) if self.is_gpu else (torch.float32,)

    @property
    def name(self) -> str:
        """The device in words."""
        if not self.is_gpu:
            return "Triton's interpreter on the CPU"
        properties = torch.cuda.get_device_properties(self.device)
        return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"

    @contextmanager
    def forbid_waiting(self) -> Iterator[None]:
        """Within, whatever waits for the device is an error."""
        if not self.is_gpu:
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def time_ms(self, forms: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Milliseconds of each form, in turns; what the caches held before is gone. Empty lists without a GPU."""
        for form in forms.values():
            form()
        if not self.is_gpu:
            return {name: [] for name in forms}
        flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=self.device)
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in forms}
        for _ in range(self.rounds):
            for name, form in forms.items():
                flush.zero_()
                start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                start.record()
                form()
                end.record()
                events[name].append((start, end))
        torch.cuda.synchronize()
        return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofs:
    """What the device reaches at best, measured: bytes a second of a copy, FLOPs a second of a bfloat16 product."""

    bytes_per_s: float
    flops_per_s: float


def measure_roofs(target: Target) -> Roofs:
    """Infinite without a GPU."""
    if not target.is_gpu:
        return Roofs(bytes_per_s=float("inf"), flops_per_s=float("inf"))
    source = torch.empty(1 << 30, dtype=torch.int8, device=target.device)
    copy = torch.empty_like(source)
    size = 8192
    left = torch.randn(size, size, dtype=torch.bfloat16, device=target.device)
    right = torch.randn(size, size, dtype=torch.bfloat16, device=target.device)
    times = target.time_ms({"copy": lambda: copy.copy_(source), "product": lambda: left @ right})
    seconds = {name: statistics.median(values) / 1e3 for name, values in times.items()}
    return Roofs(bytes_per_s=2 * source.numel() / seconds["copy"], flops_per_s=2 * size**3 / seconds["product"])
