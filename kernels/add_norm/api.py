"""Residual, bias and norm as callers use them. The form is chosen by the device of the tensors.

T rows, C model dim.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

from lodestream.kernels.add_norm import reference
from lodestream.kernels.fused_forms import import_fused
from lodestream.kernels.norm import Norm

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def add_norm(
    update_TC: torch.Tensor,
    residual_TC: torch.Tensor,
    norm: Norm,
    *,
    stream: Literal["sum", "normed"],
    bias_C: torch.Tensor | None = None,
    update_norm: Norm | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds a branch to the residual stream and norms the sum.

    Args:
        update_TC: float32, bfloat16 or float16 [T, C], what attention or MLP gave.
        residual_TC: float32, bfloat16 or float16 [T, C], the stream so far. It is used up: its memory holds the sum
            afterwards, or nothing of use.
        norm: of the sum.
        stream: what the next branch is added to: the normed sum (post-norm: BERT) or the sum (pre-norm: ModernBERT,
            Qwen3).
        bias_C: added to the update first, where the linear before left it out.
        update_norm: norm of the update before it is added (Gemma).
        dtype: of the branch, that of the update where None.

    Returns:
        (branch [T, C], stream [T, C] in the dtype of the residual): the normed sum, and what the next branch is added
        to. They are one tensor where they hold the same.

    Numerics: sum and norms in float32; the norm is that of the sum before it is rounded to the stream's dtype. On a CPU
        it is that of the rounded sum.
    Cost: one read of both, one write of what is returned.

    Raises:
        ValueError: shapes or dtypes do not fit.
        KernelUnavailable: tensors on a GPU, but no triton.
    """
    if update_TC.shape != residual_TC.shape or update_TC.ndim != 2:
        raise ValueError(
            f"update and residual need one shape [T, C], not {tuple(update_TC.shape)}, {tuple(residual_TC.shape)}"
        )
    if update_TC.dtype not in DTYPES or residual_TC.dtype not in DTYPES:
        raise ValueError(f"dtypes {update_TC.dtype} and {residual_TC.dtype} are not both of {DTYPES}")
    for part in (norm.weight_C, bias_C, None if update_norm is None else update_norm.weight_C):
        if part is not None and part.shape != (update_TC.shape[1],):
            raise ValueError(f"weights of {tuple(part.shape)} for {update_TC.shape[1]} columns")
    form = reference if update_TC.device.type == "cpu" else import_fused("add_norm")
    results: tuple[torch.Tensor, torch.Tensor] = form.add_norm(
        update_TC,
        residual_TC,
        norm,
        stream=stream,
        bias_C=bias_C,
        update_norm=update_norm,
        dtype=update_TC.dtype if dtype is None else dtype,
    )
    return results
