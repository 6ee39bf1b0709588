"""Which key blocks a row reads exactly: scores from cell means, a share of the softmax per row, and a budget.

A row keeps the fewest blocks that hold a share t of its estimated softmax. t is one for the segment: the largest that a
budget of blocks allows, found by bisection on the device. Rows of dense text are exact whatever it is.

Everything after the scores is done in integers, so that sums do not depend on their order.

T packed tokens, H heads, D head dim, R rows, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from lodestream.kernels.attention.cells import CellSummary, mean_cells, split_cells
from lodestream.kernels.attention.layout import (
    CELL,
    CELLS_PER_BLOCK,
    BlockLayout,
    BlockMask,
    SegmentBlocks,
    make_mask,
)

_MASS_UNIT: Final = 1 << 24
"""One part of a row's softmax as an integer: 512 blocks and the flag of forced ones stay exact in int64."""
_FORCED: Final = 1 << 40
_BISECTIONS: Final = 20
_SCORES_AT_ONCE: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRecipe:
    """How blocks are chosen; part of what vectors depend on.

    Attributes:
        max_share: of the pairs of a segment at most this share is kept, in (0, 1]. Forced blocks and exact rows are
            kept even if they are more.
        count_step: the number of blocks of a row is rounded up to a multiple of this (or to all of them). What is
            added are the next best blocks, and rows with one count can share a call.
        reach: blocks to either side of a row's own that are always kept.
    """

    max_share: float
    count_step: int = 4
    reach: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1 or self.count_step < 1 or self.reach < 0:
            raise ValueError(f"max_share lies in (0, 1], count_step from 1 and reach from 0 on: {self}")


def _round_counts(counts: torch.Tensor, step: int, num_blocks: int) -> torch.Tensor:
    return ((counts + step - 1) // step * step).clamp(max=num_blocks)


def build_masks(
    q_THD: torch.Tensor,
    cells: CellSummary,
    layout: BlockLayout,
    recipes: Sequence[MaskRecipe],
    *,
    exact_R: torch.Tensor | None = None,
    scale: float | None = None,
) -> list[BlockMask]:
    """Chooses the blocks of every row and head, once for each recipe.

    Args:
        q_THD: [T, H, D].
        cells: the keys' cells.
        layout: the batch.
        recipes: how much is kept.
        exact_R: bool [R] on the device of q, rows that keep everything; none where None.
        scale: factor of the logits, 1 / sqrt(D) where None.

    Forced are the blocks under a row, ``recipe.reach`` to either side, and the first block of every row: the first
    token takes up what no other key wants. (As a query it has a correction row of its own.)

    Guarantees: a segment's mask does not depend on what shares its batch; nothing waits for the device.
    Cost: 1 / (16 x 16) of the FLOPs of dense attention, and as many exponentials as there are pairs of cells, once for
    all recipes.
    Source: scores from pooled queries and keys, here over 16 tokens, since rotary positions average out over more.
    """
    scale = q_THD.shape[2] ** -0.5 if scale is None else scale
    keeps: list[list[torch.Tensor]] = [[] for _ in recipes]
    for segment in layout.segments:
        mass = estimate_mass(q_THD[segment.tokens], cells, segment, layout.query_block, scale=scale)
        exact = mass.new_zeros(segment.num_rows, dtype=torch.bool) if exact_R is None else exact_R[segment.rows]
        for kept, recipe in zip(keeps, recipes, strict=True):
            kept.append(choose_blocks(mass, exact, recipe).flatten(1))
    return [make_mask(layout, torch.cat(kept, dim=1)) for kept in keeps]


def build_mask(
    q_THD: torch.Tensor,
    cells: CellSummary,
    layout: BlockLayout,
    recipe: MaskRecipe,
    *,
    exact_R: torch.Tensor | None = None,
    scale: float | None = None,
) -> BlockMask:
    """The mask of one recipe, see ``build_masks``."""
    return build_masks(q_THD, cells, layout, [recipe], exact_R=exact_R, scale=scale)[0]


def estimate_mass(
    q_nHD: torch.Tensor, cells: CellSummary, segment: SegmentBlocks, query_block: int, *, scale: float
) -> torch.Tensor:
    """float32 [H, rows, blocks]: the share of a row's softmax that each block holds, estimated from its cells.

    The mean of exp over a cell is taken for that of a normal distribution, exp(mean + variance / 2): without the
    variance, a cell with one strong key among weak ones would look weak.
    """
    q_HcD = scale * mean_cells(split_cells(q_nHD, segment), segment).transpose(0, 1)
    num_cells = segment.num_blocks * CELLS_PER_BLOCK
    used = slice(segment.cell_start, segment.cell_start + num_cells)
    # Both terms in one product: q . mean + q^2 / 2 . variance.
    keys = torch.cat([cells.keys_CHD[used].float(), cells.key_variances_CHD[used]], 2).transpose(0, 1)
    queries = torch.cat([q_HcD, q_HcD.square() / 2], 2)
    at_once = max(1, _SCORES_AT_ONCE // num_cells**2)
    parts = []
    for head in range(0, len(queries), at_once):
        heads = slice(head, head + at_once)
        parts.append(_estimate_heads(queries[heads], keys[heads], cells.log_counts_C[used], segment, query_block))
    return torch.cat(parts)


def _estimate_heads(
    queries_Hc2D: torch.Tensor,
    keys_Hc2D: torch.Tensor,
    log_counts_c: torch.Tensor,
    segment: SegmentBlocks,
    query_block: int,
) -> torch.Tensor:
    num_heads, num_blocks, num_used = len(queries_Hc2D), segment.num_blocks, -(-segment.num_tokens // CELL)
    cells_per_row = query_block // CELL
    shares = torch.softmax(queries_Hc2D[:, :num_used] @ keys_Hc2D.transpose(1, 2) + log_counts_c, 2)
    # Each query cell has one vote: in a sum of exponentials over them, one cell with large logits would speak for all.
    shares = shares.view(num_heads, num_used, num_blocks, CELLS_PER_BLOCK).sum(3)
    shares = F.pad(shares, (0, 0, 0, segment.num_rows * cells_per_row - num_used))
    sums = shares.view(num_heads, segment.num_rows, cells_per_row, num_blocks).sum(2)
    return sums / sums.sum(2, keepdim=True)


def choose_blocks(mass_HRB: torch.Tensor, exact_R: torch.Tensor, recipe: MaskRecipe) -> torch.Tensor:
    """bool [H, rows, blocks] for one segment: the blocks to keep.

    Args:
        mass_HRB: float32 [H, rows, blocks], shares of the softmax, each row's sum 1.
        exact_R: bool [rows], which keep everything.
        recipe: how much is kept.
    """
    num_heads, num_rows, num_blocks = mass_HRB.shape
    forced = force_blocks(num_rows, num_blocks, reach=recipe.reach, device=mass_HRB.device)
    keys = (mass_HRB * _MASS_UNIT).round().to(torch.int64) + forced * _FORCED
    keys, order = torch.sort(keys, dim=2, descending=True, stable=True)
    mass = keys & (_FORCED - 1)
    before = torch.cumsum(mass, 2) - mass
    ranking = _Ranking(
        before=before.contiguous(),
        total=mass.sum(2, keepdim=True),
        smallest=torch.where(exact_R[:, None], num_blocks, forced.sum(1, keepdim=True)),
        step=recipe.count_step,
    )
    threshold = torch.ones((), dtype=torch.float64, device=mass_HRB.device)
    if recipe.max_share < 1:
        limit = math.floor(recipe.max_share * num_heads * num_rows * num_blocks)
        threshold = _solve_threshold(ranking, limit, threshold)
    counts = ranking.count(threshold)
    kept = torch.arange(num_blocks, device=mass_HRB.device) < counts
    return torch.zeros_like(kept).scatter_(2, order, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """The blocks of each row from first to last choice."""

    before: torch.Tensor
    total: torch.Tensor
    smallest: torch.Tensor
    step: int

    def count(self, threshold: torch.Tensor) -> torch.Tensor:
        """int64 [H, rows, 1]: blocks that a threshold keeps."""
        num_blocks = self.before.shape[2]
        target = torch.ceil(threshold * self.total).to(torch.int64)
        counts = torch.searchsorted(self.before, target)
        counts = torch.maximum(counts, self.smallest)
        return _round_counts(counts, self.step, num_blocks)


def _solve_threshold(ranking: _Ranking, limit: int, highest: torch.Tensor) -> torch.Tensor:
    """The largest threshold up to ``highest`` that keeps at most ``limit`` pairs; 0 where none does."""
    low, high = torch.zeros_like(highest), highest
    fits = ranking.count(highest).sum() <= limit
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        middle_fits = ranking.count(middle).sum() <= limit
        low = torch.where(middle_fits, middle, low)
        high = torch.where(middle_fits, high, middle)
    return torch.where(fits, highest, low)


def force_blocks(num_rows: int, num_blocks: int, *, reach: int, device: torch.device | str) -> torch.Tensor:
    """bool [rows, blocks]: what every head keeps, whatever the scores say."""
    row = torch.arange(num_rows, device=device)[:, None]
    block = torch.arange(num_blocks, device=device)[None, :]
    per_row = -(-num_blocks // num_rows)
    beside = (block >= row * per_row - reach) & (block < (row + 1) * per_row + reach)
    return beside | (block == 0)
