"""Block-sparse attention on a CPU, in plain torch: what rows read is copied side by side, then attended densely.

A few rows of one head at a time, all with the same number of kept blocks: copy, product, softmax, product. What they
need (keys, values, scores) stays in the processor's cache that way. Threads take one head after the other
(kernels/threads.py). No head depends on another, so that a segment's result does not depend on what shares its batch.

T packed tokens, H heads, D head dim, q tokens of a row, W keys that a row reads: its kept tokens, then its cells.
Both are copied in units of CELLS_PER_BLOCK keys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.layout import CELLS_PER_BLOCK, KEY_BLOCK, BlockMask, SegmentBlocks
from lodestream.kernels.threads import share_heads

_UNITS_PER_BLOCK: Final = KEY_BLOCK // CELLS_PER_BLOCK
_SCORES_AT_ONCE: Final = 1 << 20
"""Of the rows that are attended together."""


def attend_blocks(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    cells: CellSummary | None,
    *,
    scale: float,
    with_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See ``reference.attend_blocks``; float16 is computed in float32.

    Numerics: in bfloat16 the logits and the softmax are rounded to bfloat16, as products on this kind of processor are;
    sums inside a product and inside the softmax are float32.
    """
    dtype = torch.float32 if q_THD.dtype == torch.float16 else q_THD.dtype
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32) if with_lse else None
    attend = _attend_segment if mask.window is None else _attend_window
    for number, segment in enumerate(mask.layout.segments):
        q, k, v = (x[segment.tokens].to(dtype) for x in (q_THD, k_THD, v_THD))
        lse = None if lse_TH is None else lse_TH[segment.tokens].T
        stand_ins = None if cells is None else _take_cells(cells, segment, number, dtype)
        out_HqD = attend(q * scale, k, v, _Reads(mask=mask, segment=segment, stand_ins=stand_ins), lse)
        out_THD[segment.tokens] = out_HqD.transpose(0, 1)
    return out_THD, lse_TH


@dataclass(frozen=True, slots=True, kw_only=True)
class _StandIns:
    """keys, values [H, cells, D]; log_counts [blocks, CELLS_PER_BLOCK]; slope [H, D, D] or None."""

    keys: torch.Tensor
    values: torch.Tensor
    log_counts: torch.Tensor
    slope: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads:
    """What the rows of one segment read."""

    mask: BlockMask
    segment: SegmentBlocks
    stand_ins: _StandIns | None


def _take_cells(cells: CellSummary, segment: SegmentBlocks, number: int, dtype: torch.dtype) -> _StandIns:
    num_cells = segment.num_blocks * CELLS_PER_BLOCK
    used = slice(segment.cell_start, segment.cell_start + num_cells)
    return _StandIns(
        keys=_by_head(cells.keys_CHD[used].to(dtype), num_cells),
        values=_by_head(cells.values_CHD[used].to(dtype), num_cells),
        log_counts=cells.log_counts_C[used].view(-1, CELLS_PER_BLOCK).to(dtype),
        slope=None if cells.slopes_NHDD is None else cells.slopes_NHDD[number].to(dtype),
    )


def _by_head(x_nHD: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[H, num_tokens, D], zeros behind what there is."""
    num_heads, head_dim = x_nHD.shape[1:]
    out = x_nHD.new_empty(num_heads, num_tokens, head_dim)
    out[:, : len(x_nHD)] = x_nHD.transpose(0, 1)
    out[:, len(x_nHD) :] = 0
    return out


def _attend_segment(
    q_nHD: torch.Tensor, k_nHD: torch.Tensor, v_nHD: torch.Tensor, reads: _Reads, lse_Hn: torch.Tensor | None
) -> torch.Tensor:
    """[H, n, D] of one segment, its queries scaled already."""
    segment, query_block = reads.segment, reads.mask.layout.query_block
    num_heads, head_dim = q_nHD.shape[1:]
    q_HRqD = _by_head(q_nHD, segment.num_rows * query_block).view(num_heads, segment.num_rows, query_block, head_dim)
    k_HkD, v_HkD = (_by_head(x, segment.num_blocks * KEY_BLOCK) for x in (k_nHD, v_nHD))
    out_HRqD = torch.empty_like(q_HRqD)
    lse_HRq = None if lse_Hn is None else lse_Hn.new_empty(out_HRqD.shape[:3])

    def attend_heads(heads: Iterator[int]) -> None:
        worker = _HeadWorker(reads, head_dim, q_nHD.dtype)
        for head in heads:
            rows = worker.sort_rows(head)
            out, lse = worker.attend(head, q_HRqD[head, rows], k_HkD[head], v_HkD[head], with_lse=lse_HRq is not None)
            out_HRqD[head].index_copy_(0, rows, out)
            if lse_HRq is not None and lse is not None:
                lse_HRq[head].index_copy_(0, rows, lse)

    share_heads(attend_heads, num_heads)
    if lse_Hn is not None and lse_HRq is not None:
        lse_Hn.copy_(lse_HRq.flatten(1)[:, : segment.num_tokens])
    return out_HRqD.flatten(1, 2)[:, : segment.num_tokens]


class _HeadWorker:
    """Attends one head after the other; its buffers are used again by the next rows."""

    def __init__(self, reads: _Reads, head_dim: int, dtype: torch.dtype) -> None:
        self._reads, self._head_dim = reads, head_dim
        self._num_blocks = reads.segment.num_blocks
        self._query_block = reads.mask.layout.query_block
        self._tail_tokens = reads.segment.num_tokens - (self._num_blocks - 1) * KEY_BLOCK
        self._order_RB = torch.empty(0, dtype=torch.int64)
        self._counts: list[int] = []
        most = max(
            fill_size(self._width(count))
            for count in set(reads.mask.counts_HR[:, reads.segment.rows].flatten().tolist())
        )
        num_scores = max(_SCORES_AT_ONCE, most * self._query_block)
        num_keys = num_scores // self._query_block
        self._key_buffer, self._value_buffer = (torch.empty(num_keys * head_dim, dtype=dtype) for _ in range(2))
        self._logit_buffer, self._weight_buffer = (torch.empty(num_scores, dtype=dtype) for _ in range(2))

    def sort_rows(self, head: int) -> torch.Tensor:
        """int64 [R]: the rows in the order in which ``attend`` takes them, those with few kept blocks first."""
        mask, segment = self._reads.mask, self._reads.segment
        place = head if len(mask.counts_HR) > 1 else 0
        counts_R, rows = torch.sort(mask.counts_HR[place, segment.rows], stable=True)
        self._order_RB = mask.order_of(segment)[place, rows].to(torch.int64)
        self._counts = counts_R.tolist()
        return rows

    def attend(
        self, head: int, q_RqD: torch.Tensor, k_kD: torch.Tensor, v_kD: torch.Tensor, *, with_lse: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[R, q, D] and float32 [R, q], of rows in the order of ``sort_rows``; keys are filled up with zeros."""
        stand_ins, order_RB = self._reads.stand_ins, self._order_RB
        units = torch.arange(_UNITS_PER_BLOCK)
        cells_RB, bias_Rc = order_RB[:, :0], None
        tables = [[k_kD], [v_kD]]
        if stand_ins is not None:
            tables = [[k_kD, stand_ins.keys[head]], [v_kD, stand_ins.values[head]]]
            cells_RB = order_RB + self._num_blocks * _UNITS_PER_BLOCK
            bias_Rc = stand_ins.log_counts[order_RB].flatten(1)
        nothing = k_kD.new_zeros(CELLS_PER_BLOCK, self._head_dim)
        keys, values = (torch.cat([*parts, nothing]).view(-1, nothing.numel()) for parts in tables)
        filler = torch.tensor([[len(keys) - 1]])
        has_tail_R = self._find_tails()
        out_RqD = torch.empty_like(q_RqD)
        lse_Rq = torch.empty(q_RqD.shape[:2]) if with_lse else None
        for rows, count in self._group():
            kept = order_RB[rows, :count, None] * _UNITS_PER_BLOCK + units
            num_rows, num_kept, num_used = len(kept), count * KEY_BLOCK, self._width(count)
            width = fill_size(num_used)
            filled = filler.expand(num_rows, (width - num_used) // CELLS_PER_BLOCK)
            picked = torch.cat([kept.flatten(1), cells_RB[rows, count:], filled], 1)
            k, v = (
                torch.index_select(table, 0, picked.view(-1), out=_take(buffer, picked.numel(), table.shape[1])).view(
                    num_rows, width, self._head_dim
                )
                for table, buffer in ((keys, self._key_buffer), (values, self._value_buffer))
            )
            logits = _take(self._logit_buffer, num_rows, self._query_block, width)
            torch.bmm(q_RqD[rows], k.transpose(1, 2), out=logits)
            if has_tail_R is not None:
                tail = logits[:, :, num_kept - KEY_BLOCK + self._tail_tokens : num_kept]
                tail.masked_fill_(has_tail_R[rows, None, None], -math.inf)
            if bias_Rc is not None and num_used > num_kept:
                logits[:, :, num_kept:num_used] += bias_Rc[rows, None, count * CELLS_PER_BLOCK :]
            logits[:, :, num_used:] = -math.inf
            if lse_Rq is not None:
                torch.logsumexp(logits.float(), 2, out=lse_Rq[rows])
            weights = torch.softmax(logits, 2, out=_take(self._weight_buffer, *logits.shape))
            torch.bmm(weights, v, out=out_RqD[rows])
            if stand_ins is not None and stand_ins.slope is not None and num_used > num_kept:
                share = weights[:, :, num_kept:].sum(2, keepdim=True)
                out_RqD[rows].addcmul_(share, q_RqD[rows] @ stand_ins.slope[head])
        return out_RqD, lse_Rq

    def _width(self, count: int) -> int:
        """Keys that a row with so many kept blocks reads, its cells included."""
        num_cells = 0 if self._reads.stand_ins is None else (self._num_blocks - count) * CELLS_PER_BLOCK
        return count * KEY_BLOCK + num_cells

    def _group(self) -> Iterator[tuple[slice, int]]:
        """Rows that are attended together, a power of two of them, and how many blocks each of them keeps."""
        start = 0
        for count, run in itertools.groupby(self._counts):
            end = start + len(list(run))
            most = max(1, _SCORES_AT_ONCE // (self._query_block * fill_size(self._width(count))))
            while start < end:
                size = 1 << (min(most, end - start).bit_length() - 1)
                yield slice(start, start + size), count
                start += size

    def _find_tails(self) -> torch.Tensor | None:
        """bool [R], rows that keep the last block, which is then the last of theirs; None where it is full."""
        if self._tail_tokens == KEY_BLOCK:
            return None
        last = torch.tensor(self._counts)[:, None] - 1
        return self._order_RB.gather(1, last)[:, 0] == self._num_blocks - 1


def fill_size(size: int) -> int:
    """The size that ``size`` is filled up to, at most 6 % more from 16 on: there are 16 for each doubling.

    oneDNN compiles a kernel for each new shape of a bfloat16 product. With as many shapes as segments have lengths,
    they took a gigabyte after 120 segments.
    """
    step = max(1, (1 << (size.bit_length() - 1)) // 16)
    return -(-size // step) * step


def _take(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
    """The beginning of a buffer, in a shape."""
    return buffer[: math.prod(shape)].view(shape)


def _attend_window(
    q_nHD: torch.Tensor, k_nHD: torch.Tensor, v_nHD: torch.Tensor, reads: _Reads, lse_Hn: torch.Tensor | None
) -> torch.Tensor:
    """[H, n, D] of one segment under a sliding window: the keys of a row lie side by side, for all heads at once."""
    window = reads.mask.window
    assert window is not None
    reach, query_block, num_tokens = window // 2, reads.mask.layout.query_block, len(q_nHD)
    q, k, v = (_by_head(x, num_tokens) for x in (q_nHD, k_nHD, v_nHD))
    out = torch.empty_like(q)
    place = torch.arange(num_tokens)
    for start in range(0, num_tokens, query_block):
        end = min(start + query_block, num_tokens)
        seen = slice(max(0, start - reach), min(end + reach, num_tokens))
        outside = (place[start:end, None] - place[None, seen]).abs() > reach
        logits = torch.bmm(q[:, start:end], k[:, seen].transpose(1, 2)).masked_fill_(outside, -math.inf)
        if lse_Hn is not None:
            lse_Hn[:, start:end] = torch.logsumexp(logits.float(), 2)
        torch.bmm(torch.softmax(logits, 2), v[:, seen], out=out[:, start:end])
    return out
