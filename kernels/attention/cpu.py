"""Block-sparse attention on a CPU, in plain torch: what a row reads is copied side by side, then attended densely.

One row of one head at a time: copy, product, softmax, product. What a row needs (keys, values, scores) stays in the
processor's cache that way, and torch's threads share each step. No row depends on another, so that a segment's result
does not depend on what shares its batch.

T packed tokens, H heads, D head dim, q tokens of a row, W keys that a row reads: its kept tokens, then its cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.layout import CELLS_PER_BLOCK, KEY_BLOCK, BlockMask, SegmentBlocks


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
    """keys, values [H x blocks, CELLS_PER_BLOCK x D]; log_counts [blocks, CELLS_PER_BLOCK]; slope [H, D, D] or None."""

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
    row_size = CELLS_PER_BLOCK * cells.keys_CHD.shape[2]
    return _StandIns(
        keys=_by_head(cells.keys_CHD[used].to(dtype), num_cells).view(-1, row_size),
        values=_by_head(cells.values_CHD[used].to(dtype), num_cells).view(-1, row_size),
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
    num_tokens, num_blocks = segment.num_tokens, segment.num_blocks
    q = _by_head(q_nHD, num_tokens)
    keys = _by_head(k_nHD, num_blocks * KEY_BLOCK).view(-1, KEY_BLOCK * head_dim)
    values = _by_head(v_nHD, num_blocks * KEY_BLOCK).view(-1, KEY_BLOCK * head_dim)
    order = reads.mask.order_of(segment).to(torch.int64).expand(num_heads, -1, -1)
    order = order + torch.arange(num_heads)[:, None, None] * num_blocks
    counts = reads.mask.counts_HR[:, segment.rows].expand(num_heads, -1).tolist()
    row = _Row(keys, values, reads.stand_ins, segment, max_kept=max(map(max, counts)), query_block=query_block)
    out = torch.empty_like(q)
    shares = None if reads.stand_ins is None else q.new_zeros(num_heads, num_tokens, 1)
    for head in range(num_heads):
        for number, count in enumerate(counts[head]):
            place = slice(number * query_block, min((number + 1) * query_block, num_tokens))
            logits = row.gather(q[head, place], order[head, number], count)
            if lse_Hn is not None:
                lse_Hn[head, place] = torch.logsumexp(logits.float(), 1)
            weights = row.attend(logits, out[head, place])
            if shares is not None and count < num_blocks:
                torch.sum(weights[:, count * KEY_BLOCK :], 1, keepdim=True, out=shares[head, place])
    if reads.stand_ins is not None and shares is not None and reads.stand_ins.slope is not None:
        out.addcmul_(shares, torch.bmm(q, reads.stand_ins.slope))
    return out


class _Row:
    """Buffers for what one row reads, used again by the next."""

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        stand_ins: _StandIns | None,
        segment: SegmentBlocks,
        *,
        max_kept: int,
        query_block: int,
    ) -> None:
        self._keys, self._values, self._stand_ins = keys, values, stand_ins
        self._num_blocks = segment.num_blocks
        self._head_dim = keys.shape[1] // KEY_BLOCK
        self._tail_tokens = segment.num_tokens - (segment.num_blocks - 1) * KEY_BLOCK
        most = max_kept * KEY_BLOCK + (segment.num_blocks * CELLS_PER_BLOCK if stand_ins is not None else 0)
        self._key_buffer = keys.new_empty(most * self._head_dim)
        self._value_buffer = keys.new_empty(most * self._head_dim)
        self._logit_buffer = keys.new_empty(most * query_block)
        self._weight_buffer = keys.new_empty(most * query_block)
        self._gathered = self._value_buffer

    def gather(self, q_qD: torch.Tensor, order_B: torch.Tensor, count: int) -> torch.Tensor:
        """[q, W], the logits of the row whose blocks are ``order_B``, ``count`` of them kept."""
        num_dropped = self._num_blocks - count if self._stand_ins is not None else 0
        num_kept = count * KEY_BLOCK
        width = num_kept + num_dropped * CELLS_PER_BLOCK
        keys = self._key_buffer[: width * self._head_dim].view(width, -1)
        self._gathered = self._value_buffer[: width * self._head_dim].view(width, -1)
        kept, dropped = order_B[:count], order_B[count:]
        torch.index_select(self._keys, 0, kept, out=keys[:num_kept].view(count, -1))
        torch.index_select(self._values, 0, kept, out=self._gathered[:num_kept].view(count, -1))
        if num_dropped and self._stand_ins is not None:
            cells = self._stand_ins
            torch.index_select(cells.keys, 0, dropped, out=keys[num_kept:].view(num_dropped, -1))
            torch.index_select(cells.values, 0, dropped, out=self._gathered[num_kept:].view(num_dropped, -1))
        logits = self._logit_buffer[: width * len(q_qD)].view(len(q_qD), width)
        torch.mm(q_qD, keys.T, out=logits)
        self._add_bias(logits, order_B, count, num_dropped)
        return logits

    def _add_bias(self, logits: torch.Tensor, order_B: torch.Tensor, count: int, num_dropped: int) -> None:
        num_kept = count * KEY_BLOCK
        if self._tail_tokens < KEY_BLOCK and int(order_B[count - 1]) % self._num_blocks == self._num_blocks - 1:
            logits[:, num_kept - KEY_BLOCK + self._tail_tokens : num_kept] = -math.inf
        if num_dropped and self._stand_ins is not None:
            blocks = order_B[count:] % self._num_blocks
            logits[:, num_kept:] += self._stand_ins.log_counts[blocks].view(-1)

    def attend(self, logits: torch.Tensor, out_qD: torch.Tensor) -> torch.Tensor:
        """Writes the row's result and returns its weights [q, W]."""
        weights = self._weight_buffer[: logits.numel()].view_as(logits)
        torch.softmax(logits, 1, out=weights)
        torch.mm(weights, self._gathered, out=out_qD)
        return weights


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
