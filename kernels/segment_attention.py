"""Dense attention inside each segment of a packed batch, on a CPU.

A call of ``scaled_dot_product_attention`` per segment costs more than its arithmetic where segments are short.
Segments are therefore filled up to a multiple of LENGTH_STEP tokens, and those of one filled length share a call. How a
segment is filled depends on its own length only, so that its result does not depend on what shares its batch.

T packed tokens, R rows (T filled up), P tokens after filling segments, C model dim, H heads, D head dim, N segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

LENGTH_STEP: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Segments of one filled length; ``mask`` is None where none of them is filled."""

    count: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """How the segments of a batch are grouped; the same for every layer.

    ``gather`` int64 [P] takes packed tokens to the groups, ``scatter`` int64 [R] takes them back; both None where the
    packed order is that of the groups already.
    """

    groups: tuple[_Group, ...]
    gather: torch.Tensor | None
    scatter: torch.Tensor | None


def plan_attention(lengths: Sequence[int], *, num_rows: int, dtype: torch.dtype) -> AttentionPlan:
    """Plans the attention of segments that lie end to end.

    Args:
        lengths: tokens of each, T together.
        num_rows: R >= T, rows of what goes in and comes out; those from T on are no segment's and come out finite.
        dtype: of the queries.
    """
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    filled = -(-sizes // LENGTH_STEP) * LENGTH_STEP
    is_filled = filled != sizes
    groups, gather = [], []
    scatter = np.zeros(num_rows, np.int64)
    offset = 0
    for length, masked in sorted(set(zip(filled.tolist(), is_filled.tolist(), strict=True))):
        members = np.flatnonzero((filled == length) & (is_filled == masked))
        places = np.arange(length)
        inside = places[None, :] < sizes[members, None]
        # What fills a segment is its own first token: finite, and masked out as a key.
        gather.append(np.where(inside, starts[members, None] + places, starts[members, None]).reshape(-1))
        scatter[(starts[members, None] + places)[inside]] = (offset + np.arange(inside.size).reshape(inside.shape))[
            inside
        ]
        groups.append(_Group(count=len(members), length=length, mask=_make_mask(inside, dtype) if masked else None))
        offset += inside.size
    gathered = np.concatenate(gather)
    if len(gathered) == len(scatter) and bool((gathered == np.arange(len(gathered))).all()):
        return AttentionPlan(groups=tuple(groups), gather=None, scatter=None)
    return AttentionPlan(
        groups=tuple(groups), gather=torch.from_numpy(gathered.astype(np.int64)), scatter=torch.from_numpy(scatter)
    )


def attend_segments(qkv_T3C: torch.Tensor, plan: AttentionPlan, *, num_heads: int) -> torch.Tensor:
    """Attention inside each segment.

    Args:
        qkv_T3C: [R, 3 C], query, key and value of all tokens, then the rows that fill up.
        plan: the batch's plan.
        num_heads: H, divides C.

    Returns:
        [R, C] of the same dtype.
    """
    rows = qkv_T3C if plan.gather is None else qkv_T3C.index_select(0, plan.gather)
    dim = qkv_T3C.shape[1] // 3
    head_dim = dim // num_heads
    mixed_PC = torch.empty(len(rows), dim, dtype=qkv_T3C.dtype)
    start = 0
    for group in plan.groups:
        end = start + group.count * group.length
        qkv = rows[start:end].view(group.count, group.length, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=group.mask)
        mixed_PC[start:end].view(group.count, group.length, num_heads, head_dim).copy_(mixed.transpose(1, 2))
        start = end
    return mixed_PC if plan.scatter is None else mixed_PC.index_select(0, plan.scatter)


def _make_mask(inside: NDArray[np.bool_], dtype: torch.dtype) -> torch.Tensor:
    """[N, 1, 1, length]: 0 for a segment's own keys, minus infinity for what fills it."""
    mask = np.where(inside, 0.0, -np.inf).astype(np.float32)
    return torch.from_numpy(mask)[:, None, None, :].to(dtype)
