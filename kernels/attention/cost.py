"""What a call of block-sparse attention costs, in FLOPs, beside dense attention of the same segments.

A multiply and an add are two FLOPs; exponentials are not counted. Of partial blocks only the tokens there are count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lodestream.kernels.attention.correction import count_samples
from lodestream.kernels.attention.layout import CELL, KEY_BLOCK, BlockLayout, BlockMask


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopAccount:
    """FLOPs of one call over all heads.

    Attributes:
        dense: what dense attention takes.
        exact: kept blocks; float64 scalar tensor on the mask's device, as ``stand_ins`` is: reading it waits for the
            device, so it is read once a run and not once a call.
        stand_ins: dropped cells.
        scoring: choosing the blocks.
        slope: the first-order term.
        correction: correction rows.
    """

    dense: int
    exact: torch.Tensor
    stand_ins: torch.Tensor
    scoring: int
    slope: int
    correction: int

    @property
    def share(self) -> torch.Tensor:
        """Everything as a share of dense attention; float64 scalar."""
        return (self.exact + self.stand_ins + (self.scoring + self.slope + self.correction)) / self.dense


def account_flops(
    mask: BlockMask,
    *,
    num_heads: int,
    head_dim: int,
    compensation: str = "slope",
    correction_step: int | None = None,
    scored: bool = True,
) -> FlopAccount:
    """FLOPs of ``api.attend`` with the same arguments; ``scored`` adds what ``build_mask`` took."""
    lengths = [segment.num_tokens for segment in mask.layout.segments]
    per_pair = 4 * head_dim
    dense = num_heads * per_pair * sum(n * n for n in lengths)
    areas = _measure_pairs(mask.layout).to(mask.keep_HP.device, non_blocking=True)
    kept = (mask.keep_HP * areas).sum() * (num_heads // mask.keep_HP.shape[0])
    compensated = compensation != "none" and mask.window is None
    dropped = (num_heads * areas.sum() - kept) * int(compensated)
    corrected = correction_step is not None and mask.window is None
    return FlopAccount(
        dense=dense,
        exact=kept * per_pair,
        stand_ins=dropped * per_pair / CELL,
        scoring=num_heads * 4 * head_dim * sum((-(-n // CELL)) ** 2 for n in lengths) if scored else 0,
        slope=num_heads * 4 * head_dim**2 * sum(lengths) if compensated and compensation == "slope" else 0,
        correction=num_heads * per_pair * sum(n * count_samples(n, correction_step) for n in lengths)
        if corrected and correction_step is not None
        else 0,
    )


def share_of_pairs(
    flop_share: float, *, num_tokens: int, head_dim: int, compensation: str, correction_step: int | None
) -> float:
    """The share of pairs that may be kept so that a segment's attention takes ``flop_share`` of the dense FLOPs.

    0 where the budget does not even cover what is spent beside kept blocks.
    """
    fixed = 1 / CELL**2
    if compensation == "slope":
        fixed += head_dim / num_tokens
    if correction_step is not None:
        fixed += count_samples(num_tokens, correction_step) / num_tokens
    per_dropped = 0.0 if compensation == "none" else 1 / CELL
    return min(1.0, max(0.0, (flop_share - fixed - per_dropped) / (1 - per_dropped)))


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
