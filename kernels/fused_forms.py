"""Where the Triton forms of the operators come from: asked for when tensors lie on a GPU, never before."""

from __future__ import annotations

import importlib
from types import ModuleType

from lodestream.errors import KernelUnavailable


def import_fused(operator: str) -> ModuleType:
    """``lodestream.kernels.<operator>.fused``; triton is there for Linux only, and not needed on a CPU.

    Raises:
        KernelUnavailable: no triton.
    """
    try:
        return importlib.import_module(f"lodestream.kernels.{operator}.fused")
    except ImportError as error:
        raise KernelUnavailable(
            f"{operator} on a GPU needs triton ({error})", "pip install 'lodestream[gpu]'"
        ) from None
