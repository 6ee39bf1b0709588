"""What the tests of kernels in Triton's interpreter share.

Outputs are filled with NaN before a launch, and so are the neighbours of what a kernel may read: what is not written,
or read from next door, is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import triton

from lodestream.kernels.fused_forms import Launch
from tests.support import triton_interpreter  # noqa: F401  repairs the interpreter
from tests.support.mutants import load_mutant


def surround(rows: torch.Tensor) -> torch.Tensor:
    """The same rows as a view into something larger that holds NaN everywhere else."""
    width = rows.shape[1]
    larger = torch.full((len(rows) + 2, width + 32), math.nan, dtype=rows.dtype)
    view = larger[1:-1, 16 : 16 + width]
    view.copy_(rows)
    return view


def launch_kernel(kernel: Any, launch: Launch, *outputs: torch.Tensor) -> None:
    """Runs a kernel; ``outputs`` are those that hold nothing before."""
    for output in outputs:
        output.fill_(math.nan if output.dtype.is_floating_point else 99)
    with np.errstate(over="ignore", invalid="ignore"):
        kernel[launch.grid](*launch.arguments, **launch.constants)


def measure_mutant(
    original: ModuleType, folder: Path, mutation: tuple[str, str], measurement: Callable[[ModuleType], float]
) -> float:
    """Excess of a kernel with a planted mistake; infinite where it does not even run."""
    mutant = load_mutant(original, folder, *mutation)
    try:
        return measurement(mutant)
    except AssertionError:
        return math.inf
    except triton.runtime.errors.InterpreterError as error:
        # Numbers that are none come as warnings, and those are errors here.
        if "IndexError" in str(error) or "RuntimeWarning" in str(error):
            return math.inf
        raise
