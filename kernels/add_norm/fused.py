"""Residual, bias and norm as one Triton kernel: a program is one row.

A row stays in registers from the first read to the last write; the stream is written over the residual.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from lodestream.kernels.fused_forms import Launch, choose_warps, lay_columns_side_by_side
from lodestream.kernels.norm import Norm


def add_norm(
    update_TC: torch.Tensor,
    residual_TC: torch.Tensor,
    norm: Norm,
    *,
    stream: Literal["sum", "normed"],
    bias_C: torch.Tensor | None,
    update_norm: Norm | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``api.add_norm``."""
    launch = plan_launch(
        update_TC, residual_TC, norm, stream=stream, bias_C=bias_C, update_norm=update_norm, dtype=dtype
    )
    branch_TC, stream_TC = launch.run(add_norm_kernel)
    return branch_TC, stream_TC


def plan_launch(
    update_TC: torch.Tensor,
    residual_TC: torch.Tensor,
    norm: Norm,
    *,
    stream: Literal["sum", "normed"],
    bias_C: torch.Tensor | None,
    update_norm: Norm | None,
    dtype: torch.dtype,
) -> Launch:
    """The launch of ``add_norm``; its outputs are branch and stream."""
    update, residual = lay_columns_side_by_side(update_TC), lay_columns_side_by_side(residual_TC)
    num_rows, dim = update.shape
    is_one = stream == "normed" and dtype == residual.dtype
    branch_TC = residual if is_one else torch.empty(num_rows, dim, dtype=dtype, device=update.device)
    block = triton.next_power_of_2(dim)
    arguments = (
        update,
        residual,
        branch_TC,
        norm.weight_C if bias_C is None else bias_C,
        norm.weight_C if update_norm is None else update_norm.weight_C,
        norm.weight_C if update_norm is None or update_norm.bias_C is None else update_norm.bias_C,
        norm.weight_C,
        norm.weight_C if norm.bias_C is None else norm.bias_C,
        norm.eps,
        norm.eps if update_norm is None else update_norm.eps,
        update.stride(0),
        residual.stride(0),
        branch_TC.stride(0),
    )
    constants: dict[str, int | bool | str] = {
        "C": dim,
        "BLOCK": block,
        "HAS_BIAS": bias_C is not None,
        "UPDATE_NORM": describe_norm(update_norm),
        "NORM": describe_norm(norm),
        "STREAM": "branch" if is_one else stream,
        "num_warps": choose_warps(block),
    }
    return Launch(outputs=(branch_TC, residual), grid=(num_rows,), arguments=arguments, constants=constants)


def describe_norm(norm: Norm | None) -> int:
    """A norm for ``norm_row``: 0 for none, else 1, with 2 added for RMS, 4 for a bias, 8 for 1 + weight."""
    if norm is None:
        return 0
    return 1 + 2 * (norm.kind == "rms") + 4 * (norm.bias_C is not None) + 8 * norm.adds_one


@triton.jit
def norm_row(x, place, WEIGHT, BIAS, eps, C: tl.constexpr, NORM: tl.constexpr):
    """Norm of one row of C values, zeros behind them."""
    is_column = place < C
    if (NORM & 2) == 0:
        # Rounded once: a row of equal values is then all zeros, however large they are.
        mean = tl.div_rn(tl.sum(x, 0), C * 1.0)
        x = tl.where(is_column, x - mean, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) * (1.0 / C) + eps)
    weight = tl.load(WEIGHT + place, mask=is_column, other=0.0).to(tl.float32)
    if (NORM & 8) != 0:
        weight += 1.0
    x = x * weight
    if (NORM & 4) != 0:
        x += tl.load(BIAS + place, mask=is_column, other=0.0).to(tl.float32)
    return x


@triton.jit
def add_norm_kernel(
    UPDATE,
    RESIDUAL,
    BRANCH,
    BIAS,
    UPDATE_WEIGHT,
    UPDATE_BIAS,
    WEIGHT,
    NORM_BIAS,
    eps,
    update_eps,
    update_stride,
    residual_stride,
    branch_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UPDATE_NORM: tl.constexpr,
    NORM: tl.constexpr,
    STREAM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    is_column = place < C
    residual_place = RESIDUAL + row * residual_stride + place
    branch_place = BRANCH + row * branch_stride + place
    x = tl.load(UPDATE + row * update_stride + place, mask=is_column, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(BIAS + place, mask=is_column, other=0.0).to(tl.float32)
    if UPDATE_NORM != 0:
        x = norm_row(x, place, UPDATE_WEIGHT, UPDATE_BIAS, update_eps, C, UPDATE_NORM)
    x += tl.load(residual_place, mask=is_column, other=0.0).to(tl.float32)
    if STREAM == "sum":
        tl.store(residual_place, x.to(RESIDUAL.dtype.element_ty), mask=is_column)
    x = norm_row(x, place, WEIGHT, NORM_BIAS, eps, C, NORM)
    if STREAM == "normed":
        tl.store(residual_place, x.to(RESIDUAL.dtype.element_ty), mask=is_column)
    tl.store(branch_place, x.to(BRANCH.dtype.element_ty), mask=is_column)
