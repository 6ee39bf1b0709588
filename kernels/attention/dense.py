"""Dense attention of packed segments in the fastest form there is: what the sparse one has to beat.

T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

from lodestream.kernels.attention.layout import BlockLayout

_ROWS_AT_ONCE: Final = 256


def attend_dense(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, layout: BlockLayout, *, scale: float | None = None
) -> torch.Tensor:
    """[T, H, D]: attention of each token to all tokens of its segment.

    Numerics: bfloat16 on a CPU rounds logits and softmax to bfloat16; sums are float32 in all forms.
    """
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    for segment in layout.segments:
        q, k, v = (x[segment.tokens].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
        out_THD[segment.tokens] = attend_heads(q, k, v, scale=scale).transpose(0, 1)
    return out_THD


def attend_heads(
    q_HqD: torch.Tensor, k_HnD: torch.Tensor, v_HnD: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """[H, q, D]: attention of some queries to the keys of one segment."""
    if q_HqD.device.type != "cpu" or q_HqD.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q_HqD[None], k_HnD[None], v_HnD[None], scale=scale)[0]
    # torch's fused form multiplies bfloat16 in float32 on a CPU without AMX; plain products use the processor's own.
    q_HqD = q_HqD * (q_HqD.shape[2] ** -0.5 if scale is None else scale)
    out_HqD = torch.empty(q_HqD.shape, dtype=q_HqD.dtype)
    logits = q_HqD.new_empty(min(_ROWS_AT_ONCE, q_HqD.shape[1]), k_HnD.shape[1])
    weights = torch.empty_like(logits)
    for q, k, v, out in zip(q_HqD, k_HnD.contiguous(), v_HnD.contiguous(), out_HqD, strict=True):
        for start in range(0, len(q), _ROWS_AT_ONCE):
            rows = q[start : start + _ROWS_AT_ONCE]
            torch.mm(rows, k.T, out=logits[: len(rows)])
            torch.softmax(logits[: len(rows)], 1, out=weights[: len(rows)])
            torch.mm(weights[: len(rows)], v, out=out[start : start + len(rows)])
    return out_HqD
