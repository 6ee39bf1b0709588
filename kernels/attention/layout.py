"""How packed segments are cut into query blocks, key blocks and cells, and which blocks a query block reads.

A query block (a row) and a key block of one segment are a pair: the unit that is kept or dropped. A cell is a run of
tokens that is summed up by its means where its block is dropped. Rows, blocks and cells start anew with each segment,
so that a segment is cut the same way whatever shares its batch.

T packed tokens, N segments, H heads, D head dim, R rows, P pairs, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch

from lodestream.kernels.attention import budget

QUERY_BLOCKS: Final = (64, 128)
KEY_BLOCK: Final = budget.KEY_BLOCK
CELL: Final = 16
CELLS_PER_BLOCK: Final = KEY_BLOCK // CELL
CELL_TILE: Final = 32
"""Cells that a GPU kernel reads at once: each segment has a multiple of them, the surplus empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentBlocks:
    """Where the parts of one segment lie: each ``*_start`` is the number of such parts before it in the batch."""

    token_start: int
    num_tokens: int
    row_start: int
    num_rows: int
    num_blocks: int
    pair_start: int
    cell_start: int
    num_cells: int

    @property
    def tokens(self) -> slice:
        return slice(self.token_start, self.token_start + self.num_tokens)

    @property
    def rows(self) -> slice:
        return slice(self.row_start, self.row_start + self.num_rows)

    @property
    def pairs(self) -> slice:
        return slice(self.pair_start, self.pair_start + self.num_rows * self.num_blocks)

    @property
    def cells(self) -> slice:
        return slice(self.cell_start, self.cell_start + self.num_cells)


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """The segments of a batch, cut into rows, key blocks and cells. Plain integers: nothing here waits for a device."""

    segments: tuple[SegmentBlocks, ...]
    query_block: int

    @cached_property
    def num_tokens(self) -> int:
        return sum(segment.num_tokens for segment in self.segments)

    @cached_property
    def num_rows(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @cached_property
    def num_pairs(self) -> int:
        return sum(segment.num_rows * segment.num_blocks for segment in self.segments)

    @cached_property
    def num_cells(self) -> int:
        return sum(segment.num_cells for segment in self.segments)


def plan_blocks(lengths: Sequence[int], *, query_block: int = 128) -> BlockLayout:
    """Cuts segments of ``lengths`` tokens that lie end to end.

    Args:
        lengths: tokens of each segment.
        query_block: tokens of a row, 64 or 128: fewer choose more finely, more read each key less often.

    Raises:
        ValueError: there is no segment, or one without tokens, or query_block is neither.
    """
    if query_block not in QUERY_BLOCKS:
        raise ValueError(f"query_block is one of {QUERY_BLOCKS}, not {query_block}")
    if not lengths or min(lengths) < 1:
        raise ValueError("a batch needs at least one segment, and each segment at least one token")
    segments = []
    token_start = row_start = pair_start = cell_start = 0
    for length in lengths:
        num_rows, num_blocks = -(-length // query_block), -(-length // KEY_BLOCK)
        num_cells = -(-num_blocks * CELLS_PER_BLOCK // CELL_TILE) * CELL_TILE
        segments.append(
            SegmentBlocks(
                token_start=token_start,
                num_tokens=length,
                row_start=row_start,
                num_rows=num_rows,
                num_blocks=num_blocks,
                pair_start=pair_start,
                cell_start=cell_start,
                num_cells=num_cells,
            )
        )
        token_start += length
        row_start += num_rows
        pair_start += num_rows * num_blocks
        cell_start += num_cells
    return BlockLayout(segments=tuple(segments), query_block=query_block)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMask:
    """Which key blocks each row of each head reads exactly. ``make_mask`` makes one; its tensors are contiguous.

    Attributes:
        layout: the batch.
        keep_HP: bool [H, P]; a segment's pairs lie row by row. Each row keeps at least one block. H is 1 where all
            heads read the same.
        counts_HR: int32 [H, R], blocks that are kept.
        order_HP: int32 [H, P], for each row the kept blocks, ascending, then the dropped ones, ascending; numbers
            within the segment.
        window: tokens further apart than half of it do not see each other; None for no such bound. With a window
            nothing stands in for what is dropped.
    """

    layout: BlockLayout
    keep_HP: torch.Tensor
    counts_HR: torch.Tensor
    order_HP: torch.Tensor
    window: int | None = None

    def keep_of(self, segment: SegmentBlocks) -> torch.Tensor:
        """bool [H, rows, blocks] of one segment."""
        return self.keep_HP[:, segment.pairs].view(-1, segment.num_rows, segment.num_blocks)

    def order_of(self, segment: SegmentBlocks) -> torch.Tensor:
        """int32 [H, rows, blocks] of one segment."""
        return self.order_HP[:, segment.pairs].view(-1, segment.num_rows, segment.num_blocks)


def make_mask(layout: BlockLayout, keep_HP: torch.Tensor, *, window: int | None = None) -> BlockMask:
    """The mask of the pairs in ``keep_HP`` (bool [H, P]), with its lists. Each row must keep a block."""
    keep_HP = keep_HP.contiguous()
    counts, orders = [], []
    for segment in layout.segments:
        keep = keep_HP[:, segment.pairs].view(-1, segment.num_rows, segment.num_blocks)
        counts.append(keep.sum(2, dtype=torch.int32))
        orders.append(torch.sort(keep, dim=2, descending=True, stable=True).indices.to(torch.int32).flatten(1))
    return BlockMask(
        layout=layout,
        keep_HP=keep_HP,
        counts_HR=torch.cat(counts, dim=1),
        order_HP=torch.cat(orders, dim=1),
        window=window,
    )


def mask_all(layout: BlockLayout, *, device: torch.device | str = "cpu") -> BlockMask:
    """Every block kept: dense attention."""
    return make_mask(layout, torch.ones(1, layout.num_pairs, dtype=torch.bool, device=device))


def mask_window(layout: BlockLayout, *, window: int, device: torch.device | str = "cpu") -> BlockMask:
    """The blocks that a sliding window of ``window`` tokens touches: each token sees window // 2 to either side."""
    if window < 2:
        raise ValueError(f"a window reaches window // 2 tokens to either side: {window} is too small")
    keeps = []
    for segment in layout.segments:
        row_start = torch.arange(segment.num_rows, device=device)[:, None] * layout.query_block
        row_last = (row_start + layout.query_block).clamp(max=segment.num_tokens) - 1
        block_start = torch.arange(segment.num_blocks, device=device)[None, :] * KEY_BLOCK
        reach = window // 2
        keep = (block_start <= row_last + reach) & (block_start + KEY_BLOCK > row_start - reach)
        keeps.append(keep.reshape(1, -1))
    return make_mask(layout, torch.cat(keeps, dim=1), window=window)
