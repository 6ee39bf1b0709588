"""Documents end to end without padding: which segments share an encoder call, and how they lie in it.

T packed tokens, N segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


def plan_batches(lengths: Sequence[int] | NDArray[np.integer], *, batch_tokens: int) -> list[NDArray[np.int64]]:
    """Groups segments into batches of at most ``batch_tokens`` tokens.

    Args:
        lengths: tokens of each segment, special tokens included.
        batch_tokens: tokens of a batch; a longer segment gets a batch of its own.

    Returns:
        Index arrays that together hold every index once. Segments are taken by length, shortest first, so that equal
        lengths lie side by side and share an attention call; ties keep their order.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    order = np.argsort(np.asarray(lengths), kind="stable").astype(np.int64)
    batches: list[NDArray[np.int64]] = []
    start, total = 0, 0
    for position, index in enumerate(order.tolist()):
        length = int(lengths[index])
        if position > start and total + length > batch_tokens:
            batches.append(order[start:position])
            start, total = position, 0
        total += length
    if start < len(order):
        batches.append(order[start:])
    return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Segments end to end.

    Attributes:
        token_ids_T: int64 [T].
        cu_seqlens: int32 [N + 1], where each segment begins; the last entry is T.
        positions_T: int64 [T], place of each token in its own segment, from 0.
    """

    token_ids_T: torch.Tensor
    cu_seqlens: torch.Tensor
    positions_T: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_T)


def pack(token_ids: Sequence[NDArray[np.integer]]) -> PackedBatch:
    """Packs the token ids of one or more segments (none of them empty), in the order given."""
    if not token_ids or any(len(ids) == 0 for ids in token_ids):
        raise ValueError("a batch needs at least one segment, and each segment at least one token")
    lengths = np.array([len(ids) for ids in token_ids])
    bounds = np.zeros(len(token_ids) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    return PackedBatch(
        token_ids_T=torch.from_numpy(np.concatenate(token_ids).astype(np.int64)),
        cu_seqlens=torch.from_numpy(bounds),
        positions_T=torch.from_numpy(positions.astype(np.int64)),
    )
