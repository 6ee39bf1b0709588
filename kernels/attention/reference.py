"""The eager form of block-sparse attention: what the operator means, and what every other form is tested against.

T packed tokens, H heads, D head dim, R rows, C cells.
"""

from __future__ import annotations

import math

import torch

from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.layout import (
    CELLS_PER_BLOCK,
    KEY_BLOCK,
    BlockMask,
    SegmentBlocks,
)


def attend_blocks(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    cells: CellSummary | None,
    *,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``api.attend``; ``cells`` is None where nothing stands in.

    Returns:
        [T, H, D] in the dtype of the queries, and float32 [T, H], the logarithm of each softmax's denominator.
    """
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    lse_TH = torch.empty(q_THD.shape[:2], dtype=torch.float32, device=q_THD.device)
    query_block = mask.layout.query_block
    for number, segment in enumerate(mask.layout.segments):
        # [H, n, D] of the segment alone.
        q, k, v = (x[segment.tokens].transpose(0, 1).float() for x in (q_THD, k_THD, v_THD))
        keep = mask.keep_of(segment).expand(q.shape[0], -1, -1)
        stand_ins = None if cells is None else _take_cells(cells, segment, number)
        for row in range(segment.num_rows):
            start = row * query_block
            end = min(start + query_block, segment.num_tokens)
            seen = _mask_tokens(keep[:, row], segment, start, end, mask.window)
            out, lse = _attend_row(
                q[:, start:end], k, v, seen=seen, keep_HB=keep[:, row], stand_ins=stand_ins, scale=scale
            )
            place = slice(segment.token_start + start, segment.token_start + end)
            out_THD[place] = out.transpose(0, 1).to(q_THD.dtype)
            lse_TH[place] = lse.T
    return out_THD, lse_TH


_StandIns = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def _take_cells(cells: CellSummary, segment: SegmentBlocks, number: int) -> _StandIns:
    """Keys and values [H, cells, D], log counts [cells] and slope [H, D, D] of a segment, its empty blocks left out."""
    used = slice(segment.cell_start, segment.cell_start + segment.num_blocks * CELLS_PER_BLOCK)
    return (
        cells.keys_CHD[used].transpose(0, 1).float(),
        cells.values_CHD[used].transpose(0, 1).float(),
        cells.log_counts_C[used],
        None if cells.slopes_NHDD is None else cells.slopes_NHDD[number].float(),
    )


def _mask_tokens(
    keep_HB: torch.Tensor, segment: SegmentBlocks, start: int, end: int, window: int | None
) -> torch.Tensor:
    """bool [H, 1 or rows' tokens, n]: the keys that a row reads exactly."""
    seen = keep_HB.repeat_interleave(KEY_BLOCK, dim=1)[:, None, : segment.num_tokens]
    if window is None:
        return seen
    queries = torch.arange(start, end, device=seen.device)[:, None]
    keys = torch.arange(segment.num_tokens, device=seen.device)[None, :]
    return seen & ((queries - keys).abs() <= window // 2)


def _attend_row(
    q_HqD: torch.Tensor,
    k_HnD: torch.Tensor,
    v_HnD: torch.Tensor,
    *,
    seen: torch.Tensor,
    keep_HB: torch.Tensor,
    stand_ins: _StandIns | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = (scale * q_HqD @ k_HnD.transpose(1, 2)).masked_fill(~seen, -math.inf)
    if stand_ins is None:
        lse = torch.logsumexp(logits, 2)
        return torch.exp(logits - lse[..., None]) @ v_HnD, lse
    keys, values, log_counts, slope = stand_ins
    dropped = ~keep_HB.repeat_interleave(CELLS_PER_BLOCK, dim=1)[:, None]
    cell_logits = scale * q_HqD @ keys.transpose(1, 2) + log_counts
    cell_logits = cell_logits.masked_fill(~dropped, -math.inf)
    lse = torch.logsumexp(torch.cat([logits, cell_logits], 2), 2)
    cell_weights = torch.exp(cell_logits - lse[..., None])
    out = torch.exp(logits - lse[..., None]) @ v_HnD + cell_weights @ values
    if slope is not None:
        out += cell_weights.sum(2, keepdim=True) * (scale * q_HqD @ slope)
    return out, lse
