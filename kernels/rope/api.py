"""Rotary positions as callers use them. The form is chosen by the device of the tensors.

T packed tokens, H query heads, J key heads, D head dim, P positions, R = D / 2 pairs.
"""

from __future__ import annotations

from typing import Final

import torch

from lodestream.kernels.fused_forms import import_fused
from lodestream.kernels.norm import Norm
from lodestream.kernels.rope import reference
from lodestream.kernels.rope.table import RotaryTable

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def rope(
    q_THD: torch.Tensor,
    k_TJD: torch.Tensor,
    positions_T: torch.Tensor,
    table: RotaryTable,
    *,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns each pair of a query and of a key by its position's angle: value r goes with value r + D / 2.

    Args:
        q_THD: float32, bfloat16 or float16 [T, H, D], values of a token's heads side by side; tokens any distance
            apart.
        k_TJD: [T, J, D] in the same dtype.
        positions_T: int64 or int32 [T], place of each token in its own segment, below P: on a GPU nobody looks.
        table: angles of the layer.
        q_norm, k_norm: RMSNorm over the values of a head, before (Qwen3, Gemma); None for none.

    Returns:
        (queries [T, H, D], keys [T, J, D]), new and contiguous, in the same dtype.

    Numerics: float32 within, one rounding at the end.
    Cost: one read, one write.

    Raises:
        ValueError: shapes or dtypes do not fit.
        KernelUnavailable: tensors on a GPU, but no triton.
    """
    _check(q_THD, k_TJD, positions_T, table)
    for norm in (q_norm, k_norm):
        if norm is not None and (norm.kind != "rms" or norm.weight_C.shape != q_THD.shape[2:]):
            raise ValueError(f"norms of heads are RMSNorm over {q_THD.shape[2]} values")
    form = reference if q_THD.device.type == "cpu" else import_fused("rope")
    turned: tuple[torch.Tensor, torch.Tensor] = form.rope(
        q_THD, k_TJD, positions_T, table, q_norm=q_norm, k_norm=k_norm
    )
    return turned


def _check(q_THD: torch.Tensor, k_TJD: torch.Tensor, positions_T: torch.Tensor, table: RotaryTable) -> None:
    if q_THD.ndim != 3 or k_TJD.ndim != 3 or q_THD.shape[::2] != k_TJD.shape[::2]:
        raise ValueError(
            f"queries and keys need [T, H, D] and [T, J, D], not {tuple(q_THD.shape)}, {tuple(k_TJD.shape)}"
        )
    if q_THD.dtype not in DTYPES or q_THD.dtype != k_TJD.dtype:
        raise ValueError(f"queries and keys need one dtype of {DTYPES}, not {q_THD.dtype}, {k_TJD.dtype}")
    if positions_T.shape != q_THD.shape[:1]:
        raise ValueError(f"{tuple(positions_T.shape)} positions for {len(q_THD)} tokens")
    if 2 * table.cos_PR.shape[1] != q_THD.shape[2]:
        raise ValueError(f"a table of {table.cos_PR.shape[1]} pairs for a head dim of {q_THD.shape[2]}")
