"""What a call of block-sparse attention costs, in FLOPs, beside dense attention of the same segments.

A multiply and an add are two FLOPs; exponentials are not counted. Of partial blocks only the tokens there are count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lodestream.kernels.attention.correction import choose_step, count_samples
from lodestream.kernels.attention.layout import CELL, KEY_BLOCK, BlockLayout, BlockMask


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopAccount:
    """FLOPs of one call over all heads.

    Attributes:
        dense: what dense attention takes.
        exact: kept blocks; float64 scalar tensor on the mask's device, as ``stand_ins`` is: reading it waits for the
            device.
        stand_ins: dropped cells.
        beside: choosing the blocks, the first-order term, correction rows and the trial of the masks.
    """

    dense: int
    exact: torch.Tensor
    stand_ins: torch.Tensor
    beside: int

    @property
    def total(self) -> int:
        """Everything; waits for the device."""
        return round(float(self.exact + self.stand_ins)) + self.beside


def account_flops(mask: BlockMask, *, num_heads: int, head_dim: int, num_tried: int) -> FlopAccount:
    """FLOPs of ``sparse_attention.attend_sparsely`` where it took ``mask``, one of ``num_tried`` that it tried."""
    lengths = [segment.num_tokens for segment in mask.layout.segments]
    per_pair = 4 * head_dim
    areas = _measure_pairs(mask.layout).to(mask.keep_HP.device, non_blocking=True)
    kept = (mask.keep_HP * areas).sum() * (num_heads // mask.keep_HP.shape[0])
    return FlopAccount(
        dense=num_heads * per_pair * sum(n * n for n in lengths),
        exact=kept * per_pair,
        stand_ins=(num_heads * areas.sum() - kept) * per_pair / CELL,
        beside=sum(count_trial_flops(n, num_heads=num_heads, head_dim=head_dim, num_tried=num_tried) for n in lengths),
    )


def count_trial_flops(num_tokens: int, *, num_heads: int, head_dim: int, num_tried: int) -> int:
    """FLOPs of a layer of one segment up to where it is known which mask does: all there is where none does.

    Scores have keys of twice the width (mean and variance). Of each mask that is tried, the correction rows take their
    values once more.
    """
    num_cells = -(-num_tokens // CELL)
    scoring = 4 * head_dim * num_cells**2
    slope = 4 * head_dim**2 * num_tokens
    sampled = count_samples(num_tokens, choose_step(num_tokens)) * (num_tokens + num_cells)
    return num_heads * (scoring + slope + 2 * head_dim * sampled * (2 + num_tried))


def _measure_pairs(layout: BlockLayout) -> torch.Tensor:
    """float64 [P]: queries x keys of each pair."""
    areas = []
    for segment in layout.segments:
        queries = (segment.num_tokens - torch.arange(segment.num_rows) * layout.query_block).clamp(
            max=layout.query_block
        )
        keys = (segment.num_tokens - torch.arange(segment.num_blocks) * KEY_BLOCK).clamp(max=KEY_BLOCK)
        areas.append((queries[:, None] * keys[None, :]).flatten())
    return torch.cat(areas).double()
