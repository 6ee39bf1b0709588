"""What masks would err by, found at the correction rows before anything else is computed.

A correction row needs its exact softmax anyway. What a mask makes of the row follows from that softmax: the weights of
kept tokens as they are, those of cells beside them, both over a new sum. So a share that would not do costs a few
percent of dense attention, and the share that does is computed once.

S sampled tokens, H heads, D head dim, n tokens of the segment, C its cells, M masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.correction import choose_step, measure_rest, sample_tokens
from lodestream.kernels.attention.cpu import fill_size
from lodestream.kernels.attention.layout import CELLS_PER_BLOCK, KEY_BLOCK, BlockMask
from lodestream.kernels.threads import share_heads

_WEIGHTS_AT_ONCE: Final = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the correction rows of one segment say of some masks.

    Attributes:
        exact_SHD: float32 [S, H, D], dense attention of the sampled tokens; ``correction.correct_rows`` takes it.
        errors_M: float32 [M], for each mask the mean of what ``correction.SampledError.after_S`` would be, but for
            rounding.
    """

    exact_SHD: torch.Tensor
    errors_M: torch.Tensor


def try_masks(
    q_nHD: torch.Tensor,
    k_nHD: torch.Tensor,
    v_nHD: torch.Tensor,
    cells: CellSummary,
    masks: Sequence[BlockMask],
    *,
    scale: float,
) -> Trial:
    """Tries masks on the correction rows of one segment.

    Args:
        q_nHD, k_nHD, v_nHD: [n, H, D].
        cells: of that segment alone.
        masks: of that segment alone, one layout.
        scale: factor of the logits.

    Numerics: products and softmax in the dtype of the queries, sums over them in float32.
    Cost: 1 / step of dense attention, which correction needs anyway, and half as much again for each mask.
    """
    layout = masks[0].layout
    (segment,) = layout.segments
    sampled = sample_tokens(segment, choose_step(segment.num_tokens), device=q_nHD.device)
    surplus = fill_size(len(sampled)) - len(sampled)
    keeps = [F.pad(mask.keep_of(segment)[:, sampled // layout.query_block], (0, 0, 0, surplus)) for mask in masks]
    num_heads, head_dim = q_nHD.shape[1:]
    q_SHD = F.pad(q_nHD[sampled] * scale, (0, 0, 0, 0, 0, surplus))
    exact_HSD = torch.empty(num_heads, len(sampled), head_dim, device=q_nHD.device)
    tried_MHSD = torch.empty(len(masks), *exact_HSD.shape, device=q_nHD.device)

    def try_heads(heads: slice) -> None:
        q_HSD, k_HnD, v_HnD = (x[:, heads].transpose(0, 1) for x in (q_SHD, k_nHD, v_nHD))
        rows = _SampledRows(q_HSD, k_HnD, v_HnD, cells, heads)
        exact_HSD[heads] = rows.exact_HSD[:, : len(sampled)]
        for tried_HSD, keep in zip(tried_MHSD, keeps, strict=True):
            tried_HSD[heads] = rows.drop(keep[heads] if len(keep) > 1 else keep)[:, : len(sampled)]

    def try_each(heads: Iterator[int]) -> None:
        for head in heads:
            try_heads(slice(head, head + 1))

    # A processor's cache holds the weights of one head; a GPU wants many heads in one launch.
    at_once = max(1, _WEIGHTS_AT_ONCE // (len(sampled) * len(k_nHD)))
    if q_nHD.device.type == "cpu":
        share_heads(try_each, num_heads, most_at_once=at_once)
    else:
        for head in range(0, num_heads, at_once):
            try_heads(slice(head, head + at_once))
    exact_SHD = exact_HSD.transpose(0, 1)
    errors = [measure_rest(exact_SHD - sparse.transpose(0, 1), exact_SHD).mean() for sparse in tried_MHSD]
    return Trial(exact_SHD=exact_SHD, errors_M=torch.stack(errors))


class _SampledRows:
    """The sampled tokens of some heads; ``q_HSD`` is scaled already."""

    def __init__(
        self, q_HSD: torch.Tensor, k_HnD: torch.Tensor, v_HnD: torch.Tensor, cells: CellSummary, heads: slice
    ) -> None:
        num_tokens = k_HnD.shape[1]
        num_used = -(-num_tokens // KEY_BLOCK)
        num_blocks = fill_size(num_used)
        surplus = num_blocks * KEY_BLOCK - num_tokens
        self._more_blocks = num_blocks - num_used
        keys, self._values_HnD = (F.pad(x, (0, 0, 0, surplus)) for x in (k_HnD, v_HnD))
        logits = q_HSD @ keys.transpose(1, 2)
        logits[..., num_tokens:] = -math.inf
        weights = torch.softmax(logits, 2)
        # The largest weight tells the sum that the softmax divided by.
        lse = logits.amax(2).float() - weights.amax(2).float().log()
        self.exact_HSD = (weights @ self._values_HnD).float()
        self._weights_HSBk = weights.view(*weights.shape[:2], num_blocks, KEY_BLOCK)
        self._sums_HSB = self._weights_HSBk.sum(3, dtype=torch.float32)
        self._kept_HSBk = logits.view_as(self._weights_HSBk)
        used, more_cells = slice(0, num_used * CELLS_PER_BLOCK), self._more_blocks * CELLS_PER_BLOCK
        cell_keys, self._cell_values_HCD = (
            F.pad(x[used, heads].transpose(0, 1), (0, 0, 0, more_cells)) for x in (cells.keys_CHD, cells.values_CHD)
        )
        log_counts_C = F.pad(cells.log_counts_C[used], (0, more_cells), value=-math.inf)
        cell_logits = (q_HSD @ cell_keys.transpose(1, 2)).float() + log_counts_C
        self._cell_weights_HSBc = torch.exp(cell_logits - lse[..., None]).view(*lse.shape, num_blocks, CELLS_PER_BLOCK)
        slopes = cells.slopes_NHDD
        self._first_order_HSD = q_HSD.new_zeros(1) if slopes is None else (q_HSD @ slopes[0, heads]).float()

    def drop(self, keep_HSB: torch.Tensor) -> torch.Tensor:
        """float32 [H, S, D]: the result with these blocks kept (bool [H or 1, S, B]) and cells for the others."""
        dtype = self._weights_HSBk.dtype
        keep_HSB = F.pad(keep_HSB, (0, self._more_blocks))
        kept = torch.mul(self._weights_HSBk, keep_HSB[..., None].to(dtype), out=self._kept_HSBk).flatten(2)
        dropped = (self._cell_weights_HSBc * ~keep_HSB[..., None]).flatten(2)
        from_cells = dropped.sum(2, keepdim=True)
        total = (self._sums_HSB * keep_HSB).sum(2, keepdim=True) + from_cells
        mixed = (kept @ self._values_HnD).float() + (dropped.to(dtype) @ self._cell_values_HCD).float()
        result: torch.Tensor = (mixed + from_cells * self._first_order_HSD) / total
        return result
