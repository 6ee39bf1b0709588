"""Rotary positions of queries and keys, and the norm before, as one Triton kernel: a program is one token.

The angles are read from a table: the processor's own sine is wrong for the thousands of radians of late positions, and
a row of the table serves all heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lodestream.kernels.fused_forms import Launch, choose_warps, lay_heads_side_by_side
from lodestream.kernels.norm import Norm
from lodestream.kernels.rope.table import RotaryTable


def rope(
    q_THD: torch.Tensor,
    k_TJD: torch.Tensor,
    positions_T: torch.Tensor,
    table: RotaryTable,
    *,
    q_norm: Norm | None,
    k_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``api.rope``."""
    launch = plan_launch(q_THD, k_TJD, positions_T, table, q_norm=q_norm, k_norm=k_norm)
    q_out, k_out = launch.run(rope_kernel)
    return q_out, k_out


def plan_launch(
    q_THD: torch.Tensor,
    k_TJD: torch.Tensor,
    positions_T: torch.Tensor,
    table: RotaryTable,
    *,
    q_norm: Norm | None,
    k_norm: Norm | None,
) -> Launch:
    """The launch of ``rope``; its outputs are queries and keys."""
    q, k = lay_heads_side_by_side(q_THD), lay_heads_side_by_side(k_TJD)
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    pairs = triton.next_power_of_2(table.cos_PR.shape[1])
    q_heads, k_heads = (triton.next_power_of_2(x.shape[1]) for x in (q, k))
    arguments = (
        q,
        k,
        q_out,
        k_out,
        positions_T,
        table.cos_PR,
        table.sin_PR,
        q if q_norm is None else q_norm.weight_C,
        k if k_norm is None else k_norm.weight_C,
        0.0 if q_norm is None else q_norm.eps,
        0.0 if k_norm is None else k_norm.eps,
        q.stride(0),
        k.stride(0),
    )
    constants: dict[str, int | bool | str] = {
        "Q_HEADS": q.shape[1],
        "K_HEADS": k.shape[1],
        "Q_TILE": q_heads,
        "K_TILE": k_heads,
        "R": table.cos_PR.shape[1],
        "PAIRS": pairs,
        "Q_NORM": _describe(q_norm),
        "K_NORM": _describe(k_norm),
        "num_warps": choose_warps(2 * pairs * q_heads),
    }
    return Launch(outputs=(q_out, k_out), grid=(len(q),), arguments=arguments, constants=constants)


def _describe(norm: Norm | None) -> str:
    return "none" if norm is None else "1 + weight" if norm.adds_one else "weight"


@triton.jit
def _turn_heads(
    X,
    OUT,
    WEIGHT,
    cos,
    sin,
    eps,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
    R: tl.constexpr,
    PAIRS: tl.constexpr,
    NORM: tl.constexpr,
):
    """All heads of one token, whose first value lies at X."""
    head = tl.arange(0, TILE)
    pair = tl.arange(0, PAIRS)
    is_pair = pair < R
    is_inside = (head < HEADS)[:, None] & is_pair[None, :]
    place = head[:, None] * (2 * R) + pair[None, :]
    first = tl.load(X + place, mask=is_inside, other=0.0).to(tl.float32)
    last = tl.load(X + place + R, mask=is_inside, other=0.0).to(tl.float32)
    if NORM != "none":
        squares = tl.sum(first * first + last * last, 1)
        scale = tl.rsqrt(squares * (0.5 / R) + eps)[:, None]
        first_weight = tl.load(WEIGHT + pair, mask=is_pair, other=0.0).to(tl.float32)
        last_weight = tl.load(WEIGHT + pair + R, mask=is_pair, other=0.0).to(tl.float32)
        if NORM == "1 + weight":
            first_weight += 1.0
            last_weight += 1.0
        first = first * scale * first_weight[None, :]
        last = last * scale * last_weight[None, :]
    turned_first = first * cos[None, :] - last * sin[None, :]
    turned_last = last * cos[None, :] + first * sin[None, :]
    tl.store(OUT + place, turned_first.to(OUT.dtype.element_ty), mask=is_inside)
    tl.store(OUT + place + R, turned_last.to(OUT.dtype.element_ty), mask=is_inside)


@triton.jit
def rope_kernel(
    Q,
    K,
    Q_OUT,
    K_OUT,
    POSITIONS,
    COS,
    SIN,
    Q_WEIGHT,
    K_WEIGHT,
    q_eps,
    k_eps,
    q_stride,
    k_stride,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    R: tl.constexpr,
    PAIRS: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(POSITIONS + token).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    cos = tl.load(COS + position * R + pair, mask=pair < R, other=0.0)
    sin = tl.load(SIN + position * R + pair, mask=pair < R, other=0.0)
    q_out = Q_OUT + token * (2 * R * Q_HEADS)
    k_out = K_OUT + token * (2 * R * K_HEADS)
    _turn_heads(Q + token * q_stride, q_out, Q_WEIGHT, cos, sin, q_eps, Q_HEADS, Q_TILE, R, PAIRS, Q_NORM)
    _turn_heads(K + token * k_stride, k_out, K_WEIGHT, cos, sin, k_eps, K_HEADS, K_TILE, R, PAIRS, K_NORM)
