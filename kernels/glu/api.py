"""Activations as callers use them. The form is chosen by the device of the tensors.

T rows, I columns.
"""

from __future__ import annotations

from typing import Final

import torch

from lodestream.kernels.fused_forms import import_fused
from lodestream.kernels.glu import reference
from lodestream.kernels.glu.kinds import Activated, Activation

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def glu(
    x_TI: torch.Tensor,
    activation: Activation,
    *,
    activated: Activated = "all",
    bias_I: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bias, activation and gate of an MLP.

    Args:
        x_TI: float32, bfloat16 or float16 [T, I], what the linear before gave.
        activation: of the activated columns.
        activated: "all" (BERT), "first" (ModernBERT, and where the gate's weights come first) or "last" (GTE and Nomic:
            up, then gate).
        bias_I: added first, where the linear before left it out.

    Returns:
        [T, I] in the same dtype, or [T, I / 2] where a half is activated: activation(one half) x other half.

    Numerics: float32 within, one rounding at the end. On a CPU the parts are rounded to the dtype between the steps.
    Cost: one read, one write.

    Raises:
        ValueError: shapes or dtypes do not fit.
        KernelUnavailable: tensors on a GPU, but no triton.
    """
    if x_TI.ndim != 2 or x_TI.dtype not in DTYPES:
        raise ValueError(f"{x_TI.dtype} {tuple(x_TI.shape)} is not [T, I] of one of {DTYPES}")
    if activated != "all" and x_TI.shape[1] % 2:
        raise ValueError(f"{x_TI.shape[1]} columns are no two halves")
    if bias_I is not None and bias_I.shape != x_TI.shape[1:]:
        raise ValueError(f"a bias of {tuple(bias_I.shape)} for {x_TI.shape[1]} columns")
    form = reference if x_TI.device.type == "cpu" else import_fused("glu")
    result: torch.Tensor = form.glu(x_TI, activation, activated=activated, bias_I=bias_I)
    return result
