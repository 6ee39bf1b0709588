"""Block-sparse attention as one Triton kernel: a program is one row of one head.

A program reads its segment's cells first, then the blocks of its list, with one online softmax over both. Tables of the
layout say where a row's segment lies, so that nothing is padded and nothing waits for the device. No program adds to
what another one wrote: the same input gives the same bits.

Every segment has a whole number of cell tiles, empty cells weighing nothing, and only a segment's last block can be
partial: the loops need no mask, that block is taken by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final

import torch
import triton
import triton.language as tl

from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.layout import CELL_TILE, CELLS_PER_BLOCK, KEY_BLOCK, BlockLayout, BlockMask
from lodestream.kernels.fused_forms import Launch, lay_heads_side_by_side, send

_LOG2_E: Final = math.log2(math.e)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchShape:
    """How the kernel is compiled for a head dim and dtype.

    Attributes:
        key_tile: keys a step, 64 or 32: what a step holds in registers grows with it.
        num_warps, num_stages: as Triton means them.
    """

    key_tile: int
    num_warps: int
    num_stages: int


def choose_shape(head_dim: int, dtype: torch.dtype, *, query_block: int) -> LaunchShape:
    """The shape for a head dim. In half precision its loops keep to registers on sm_80, sm_90 and sm_100."""
    if dtype == torch.float32:
        return LaunchShape(key_tile=32, num_warps=query_block // 16, num_stages=1)
    if head_dim == 128:
        return LaunchShape(key_tile=32, num_warps=8, num_stages=2)
    return LaunchShape(key_tile=KEY_BLOCK, num_warps=query_block // 16, num_stages=2)


def attend_blocks(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    cells: CellSummary | None,
    *,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.attend_blocks``.

    Numerics: weights of the softmax are rounded to the dtype of the values before their product; sums and the softmax
    are float32, and so are all products of float32 input.
    """
    out_THD, lse_TH = plan_launch(q_THD, k_THD, v_THD, mask, cells, scale=scale).run(attend_blocks_kernel)
    return out_THD, lse_TH


def plan_launch(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    mask: BlockMask,
    cells: CellSummary | None,
    *,
    scale: float,
) -> Launch:
    """The launch of ``attend_blocks``; its outputs are the result and its log-sum-exp."""
    q, k, v = (lay_heads_side_by_side(x) for x in (q_THD, k_THD, v_THD))
    num_heads, head_dim = q.shape[1:]
    out_THD = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse_TH = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    tables = place_layout(mask.layout, q.device)
    shape = choose_shape(head_dim, q.dtype, query_block=mask.layout.query_block)
    # A mask for all heads alike is read with a step of 0 from head to head.
    shared = mask.keep_HP.shape[0] == 1
    slopes = None if cells is None else cells.slopes_NHDD
    arguments = (
        q,
        k,
        v,
        out_THD,
        lse_TH,
        k if cells is None else cells.keys_CHD,
        v if cells is None else cells.values_CHD,
        lse_TH if cells is None else cells.log_counts_C * _LOG2_E,
        k if slopes is None else slopes,
        tables.row_tokens,
        tables.row_segments,
        tables.row_pairs,
        tables.segment_tokens,
        tables.segment_cells,
        mask.counts_HR,
        mask.order_HP,
        mask.keep_HP.view(torch.uint8),
        scale * _LOG2_E,
        scale,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        num_heads,
        0 if shared else mask.counts_HR.stride(0),
        0 if shared else mask.order_HP.stride(0),
    )
    constants: dict[str, int | bool | str] = {
        "D": head_dim,
        "QUERY_BLOCK": mask.layout.query_block,
        "KEY_BLOCK": KEY_BLOCK,
        "KEY_TILE": shape.key_tile,
        "CELL_TILE": CELL_TILE,
        "CELLS_PER_BLOCK": CELLS_PER_BLOCK,
        "HAS_CELLS": cells is not None,
        "HAS_SLOPE": slopes is not None,
        "REACH": -1 if mask.window is None else mask.window // 2,
        "num_warps": shape.num_warps,
        "num_stages": shape.num_stages,
    }
    return Launch(
        outputs=(out_THD, lse_TH),
        grid=(mask.layout.num_rows, num_heads),
        arguments=arguments,
        constants=constants,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutTables:
    """A layout on a device, int32.

    Attributes:
        row_tokens: [R], first token of each row.
        row_segments: [R], segment of each row.
        row_pairs: [R], first pair of each row.
        segment_tokens, segment_cells: [N + 1], where the tokens and cells of each segment begin.
    """

    row_tokens: torch.Tensor
    row_segments: torch.Tensor
    row_pairs: torch.Tensor
    segment_tokens: torch.Tensor
    segment_cells: torch.Tensor


@lru_cache(maxsize=4)
def place_layout(layout: BlockLayout, device: torch.device) -> LayoutTables:
    """The tables of a layout; all layers of an encoder call share them."""
    rows = [
        (segment.token_start + row * layout.query_block, number, segment.pair_start + row * segment.num_blocks)
        for number, segment in enumerate(layout.segments)
        for row in range(segment.num_rows)
    ]
    row_tokens, row_segments, row_pairs = zip(*rows, strict=True)
    tokens = [0, *accumulate(segment.num_tokens for segment in layout.segments)]
    cells = [0, *accumulate(segment.num_cells for segment in layout.segments)]

    def place(values: tuple[int, ...] | list[int]) -> torch.Tensor:
        return send(torch.tensor(values, dtype=torch.int32), device)

    return LayoutTables(
        row_tokens=place(row_tokens),
        row_segments=place(row_segments),
        row_pairs=place(row_pairs),
        segment_tokens=place(tokens),
        segment_cells=place(cells),
    )


@triton.jit
def _step(q, kT, v, bias, qk_scale, m, total, acc, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr):
    """One tile of keys into the online softmax: running maximum m, sum and result, logits to base 2."""
    s = tl.dot(q, kT, input_precision=PRECISION)
    if HAS_BIAS:
        s = s * qk_scale + bias
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
    else:
        # The scale comes in by one multiply-add a logit.
        m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
        p = tl.exp2(s * qk_scale - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    total = total * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
    return m_new, total, acc


@triton.jit
def attend_blocks_kernel(
    Q,
    K,
    V,
    OUT,
    LSE,
    CELL_KEYS,
    CELL_VALUES,
    LOG_COUNTS,
    SLOPES,
    row_tokens,
    row_segments,
    row_pairs,
    segment_tokens,
    segment_cells,
    counts,
    order,
    keep,
    qk_scale,
    scale,
    q_stride,
    k_stride,
    v_stride,
    num_heads,
    counts_stride,
    pairs_stride,
    D: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    KEY_TILE: tl.constexpr,
    CELL_TILE: tl.constexpr,
    CELLS_PER_BLOCK: tl.constexpr,
    HAS_CELLS: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    REACH: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    PRECISION: tl.constexpr = "ieee" if Q.dtype.element_ty == tl.float32 else "tf32"
    TILES: tl.constexpr = KEY_BLOCK // KEY_TILE
    segment = tl.load(row_segments + row)
    start = tl.load(segment_tokens + segment)
    end = tl.load(segment_tokens + segment + 1)
    pairs = head.to(tl.int64) * pairs_stride + tl.load(row_pairs + row)
    num_blocks = (end - start + KEY_BLOCK - 1) // KEY_BLOCK
    count = tl.load(counts + head * counts_stride + row)

    place_d = tl.arange(0, D)
    place_k = tl.arange(0, KEY_TILE)
    tokens = tl.load(row_tokens + row) + tl.arange(0, QUERY_BLOCK)
    is_token = tokens < end
    q = tl.load(
        Q + tokens[:, None].to(tl.int64) * q_stride + head * D + place_d[None, :], mask=is_token[:, None], other=0.0
    )
    # Not minus infinity: a tile without a single key must not give infinity minus infinity.
    m = tl.full([QUERY_BLOCK], -1.0e30, tl.float32)
    total = tl.zeros([QUERY_BLOCK], tl.float32)
    acc = tl.zeros([QUERY_BLOCK, D], tl.float32)

    if HAS_CELLS:
        first_cell = tl.load(segment_cells + segment)
        last_cell = tl.load(segment_cells + segment + 1)
        place_c = tl.arange(0, CELL_TILE)
        cell_stride = num_heads * D
        cell_keys = CELL_KEYS + place_c[None, :] * cell_stride + head * D + place_d[:, None]
        cell_values = CELL_VALUES + place_c[:, None] * cell_stride + head * D + place_d[None, :]
        for cell in range(first_cell, last_cell, CELL_TILE):
            # Empty cells behind the last block look at its flag; their count of 0 decides.
            block = tl.minimum((cell - first_cell + place_c) // CELLS_PER_BLOCK, num_blocks - 1)
            is_kept = tl.load(keep + pairs + block)
            bias = tl.where(is_kept == 0, tl.load(LOG_COUNTS + cell + place_c), float("-inf"))
            base = tl.cast(cell, tl.int64) * cell_stride
            kT = tl.load(cell_keys + base)
            v = tl.load(cell_values + base)
            m, total, acc = _step(q, kT, v, bias[None, :], qk_scale, m, total, acc, True, PRECISION)
    m_cells = m
    total_cells = total

    keys = K + place_k[None, :].to(tl.int64) * k_stride + head * D + place_d[:, None]
    values = V + place_k[:, None].to(tl.int64) * v_stride + head * D + place_d[None, :]
    last_block = tl.load(order + pairs + count - 1)
    num_masked = count
    if REACH < 0:
        num_masked = (start + (last_block + 1) * KEY_BLOCK > end).to(tl.int32)
    for i in range((count - num_masked) * TILES):
        first = start + tl.load(order + pairs + i // TILES) * KEY_BLOCK + i % TILES * KEY_TILE
        kT = tl.load(keys + first.to(tl.int64) * k_stride)
        v = tl.load(values + first.to(tl.int64) * v_stride)
        m, total, acc = _step(q, kT, v, 0.0, qk_scale, m, total, acc, False, PRECISION)
    for i in range((count - num_masked) * TILES, count * TILES):
        first = start + tl.load(order + pairs + i // TILES) * KEY_BLOCK + i % TILES * KEY_TILE
        is_key = first + place_k < end
        kT = tl.load(keys + first.to(tl.int64) * k_stride, mask=is_key[None, :], other=0.0)
        v = tl.load(values + first.to(tl.int64) * v_stride, mask=is_key[:, None], other=0.0)
        if REACH < 0:
            bias = tl.where(is_key, 0.0, float("-inf"))[None, :]
        else:
            distance = tokens[:, None] - (first + place_k)[None, :]
            is_seen = is_key[None, :] & (distance <= REACH) & (distance >= -REACH)
            bias = tl.where(is_seen, 0.0, float("-inf"))
        m, total, acc = _step(q, kT, v, bias, qk_scale, m, total, acc, True, PRECISION)

    # Places behind the segment's end saw no key under a window.
    total = tl.where(is_token, total, 1.0)
    out = acc / total[:, None]
    if HAS_SLOPE:
        share = total_cells * tl.exp2(m_cells - m) / total
        slopes = SLOPES + (segment * num_heads + head).to(tl.int64) * D * D
        slope = tl.load(slopes + place_d[:, None] * D + place_d[None, :])
        # The share goes to the queries, so that the product adds to the result in place: registers are short here.
        weighted = (q * (share * scale)[:, None]).to(q.dtype)
        out = tl.dot(weighted, slope, out, input_precision=PRECISION)
    out_place = OUT + tokens[:, None].to(tl.int64) * (num_heads * D) + head * D + place_d[None, :]
    tl.store(out_place, out.to(OUT.dtype.element_ty), mask=is_token[:, None])
    tl.store(LSE + tokens.to(tl.int64) * num_heads + head, (m + tl.log2(total)) * 0.6931471805599453, mask=is_token)
