"""What the Triton forms of all operators share but the language: where they come from, and what a launch is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from lodestream.errors import KernelUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a kernel is called with, which is also what is compiled for processors that are not here.

    Attributes:
        outputs: what the kernel fills.
        grid, arguments, constants: as Triton takes them.
    """

    outputs: tuple[torch.Tensor, ...]
    grid: tuple[int, ...]
    arguments: tuple[torch.Tensor | float, ...]
    constants: dict[str, int | bool | str]

    def run(self, kernel: Any) -> tuple[torch.Tensor, ...]:
        """Launches the kernel, unless there is nothing to fill; returns the outputs."""
        if all(self.grid):
            kernel[self.grid](*self.arguments, **self.constants)
        return self.outputs


def import_fused(operator: str) -> ModuleType:
    """``lodestream.kernels.<operator>.fused``; triton is there for Linux only, and not needed on a CPU.

    Raises:
        KernelUnavailable: no triton.
    """
    try:
        return importlib.import_module(f"lodestream.kernels.{operator}.fused")
    except ImportError as error:
        hint = "pip install 'lodestream[gpu]'"
        raise KernelUnavailable(f"{operator} on a GPU needs triton ({error})", hint) from None


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x``, which lies on the CPU or there already, on the device; nothing waits."""
    if device.type == "cpu" or x.device == device:
        return x
    # Only from pinned memory does a copy not wait for what the device does.
    return x.pin_memory().to(device, non_blocking=True)


def lay_heads_side_by_side(x_THD: torch.Tensor) -> torch.Tensor:
    """Tokens may lie any distance apart; the values of a token's heads follow each other."""
    fits = x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2]
    return x_THD if fits else x_THD.contiguous()


def lay_columns_side_by_side(x_TC: torch.Tensor) -> torch.Tensor:
    """Rows may lie any distance apart; the values of a row follow each other."""
    return x_TC if x_TC.stride(1) == 1 else x_TC.contiguous()


def choose_warps(num_values: int) -> int:
    """Warps of a program that holds ``num_values``, a power of two: 16 values a thread, 8 warps at most."""
    return max(1, min(8, num_values // 512))
