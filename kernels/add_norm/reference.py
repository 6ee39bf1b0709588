"""The eager form of residual, bias and norm, in plain torch: what the operator means, and the form for CPUs."""

from __future__ import annotations

from typing import Literal

import torch

from lodestream.kernels.norm import Norm, apply_norm


def add_norm(
    update_TC: torch.Tensor,
    residual_TC: torch.Tensor,
    norm: Norm,
    *,
    stream: Literal["sum", "normed"],
    bias_C: torch.Tensor | None,
    update_norm: Norm | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``api.add_norm``. The sum is made in the memory of the residual."""
    if bias_C is not None:
        update_TC = update_TC.float() + bias_C
    if update_norm is not None:
        update_TC = apply_norm(update_TC, update_norm)
    sum_TC = residual_TC.add_(update_TC)
    normed_TC = apply_norm(sum_TC, norm)
    if stream == "sum":
        return normed_TC.to(dtype), sum_TC
    stream_TC = normed_TC.to(residual_TC.dtype)
    return (stream_TC if dtype == stream_TC.dtype else normed_TC.to(dtype)), stream_TC
