"""Span pooling as one Triton kernel: a program is one span, from token states to codes in one read.

Divisions and the root are rounded as on a CPU, so that codes differ from those of the eager form at ties only. Nothing
is checked on the host: a span that lies outside the states has a norm that is no number, and so have states that are
none.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

from lodestream.kernels.fused_forms import Launch, lay_columns_side_by_side

# Values that a program holds while it adds: 32 registers a thread, so that others fit beside it while it waits.
_TILE_VALUES: Final = 4096
_NUM_WARPS: Final = 4


def pool_spans(
    states_TC: torch.Tensor, span_starts_S: torch.Tensor, span_ends_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes int8 [S, C], scales float16 [S], norms float16 [S]); see ``api.pool_spans``.

    An empty span has codes, scale and norm 0; one outside the states has norm NaN, and what it names is not read.
    """
    codes_SC, scales_S, norms_S = plan_launch(states_TC, span_starts_S, span_ends_S).run(pool_spans_kernel)
    return codes_SC, scales_S, norms_S


def plan_launch(states_TC: torch.Tensor, span_starts_S: torch.Tensor, span_ends_S: torch.Tensor) -> Launch:
    """The launch of ``pool_spans``; its outputs are codes, scales and norms."""
    states = lay_columns_side_by_side(states_TC)
    num_tokens, dim = states.shape
    num_spans = len(span_starts_S)
    codes_SC = torch.empty(num_spans, dim, dtype=torch.int8, device=states.device)
    scales_S = torch.empty(num_spans, dtype=torch.float16, device=states.device)
    norms_S = torch.empty(num_spans, dtype=torch.float16, device=states.device)
    block = triton.next_power_of_2(dim)
    constants: dict[str, int | bool | str] = {
        "C": dim,
        "BLOCK": block,
        "TILE": max(1, _TILE_VALUES // block),
        "num_warps": _NUM_WARPS,
    }
    return Launch(
        outputs=(codes_SC, scales_S, norms_S),
        grid=(num_spans,),
        arguments=(
            states,
            span_starts_S,
            span_ends_S,
            codes_SC,
            scales_S,
            norms_S,
            num_tokens,
            states.stride(0),
        ),
        constants=constants,
    )


@triton.jit
def pool_spans_kernel(
    STATES,
    STARTS,
    ENDS,
    CODES,
    SCALES,
    NORMS,
    num_tokens,
    states_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    span = tl.program_id(0)
    start = tl.load(STARTS + span).to(tl.int64)
    end = tl.load(ENDS + span).to(tl.int64)
    is_inside = (start >= 0) & (end <= num_tokens) & (start <= end)
    count = tl.where(is_inside, end - start, 0).to(tl.int32)
    place = tl.arange(0, BLOCK)
    is_column = place < C
    token = tl.arange(0, TILE)
    states = STATES + (start + token)[:, None] * states_stride + place[None, :]
    sums = tl.zeros([TILE, BLOCK], tl.float32)
    for first in range(0, count, TILE):
        is_read = (first + token < count)[:, None] & is_column[None, :]
        sums += tl.load(states + tl.cast(first, tl.int64) * states_stride, mask=is_read, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(sums, 0), tl.maximum(count, 1).to(tl.float32))
    norm = tl.sqrt_rn(tl.sum(mean * mean, 0))
    # A length that underflows counts as zero, whatever tiny values there are.
    unit = tl.where(norm > 0.0, tl.div_rn(mean, tl.where(norm > 0.0, norm, 1.0)), 0.0)
    step = tl.div_rn(tl.max(tl.abs(unit), 0), 127.0)
    half = step.to(tl.float16)
    # Non-negative float16 are ordered as their bits: the next one up is one more.
    next_up = (half.to(tl.int16, bitcast=True) + 1).to(tl.float16, bitcast=True)
    scale = tl.where(half.to(tl.float32) < step, next_up, half)
    divisor = tl.where(scale > 0.0, scale.to(tl.float32), 1.0)
    code = tl.div_rn(unit, divisor)
    # Adding 1.5 * 2^23 leaves no room for a fraction: rounds half to even.
    code = (code + 12582912.0) - 12582912.0
    code = tl.minimum(tl.maximum(code, -127.0), 127.0)
    tl.store(CODES + span.to(tl.int64) * C + place, code.to(tl.int8), mask=is_column)
    tl.store(SCALES + span, scale)
    tl.store(NORMS + span, tl.where(is_inside, norm, float("nan")).to(tl.float16))
