"""Bias, activation and gate as one Triton kernel: a program is a tile of the result."""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

from lodestream.kernels.fused_forms import Launch, lay_columns_side_by_side
from lodestream.kernels.glu.kinds import Activated, Activation

# Inner widths are multiples of 64, and most of 128: few lanes stand idle. 16 values a thread.
_TILE_ROWS: Final = 16
_TILE_COLUMNS: Final = 128
_NUM_WARPS: Final = 4


def glu(
    x_TI: torch.Tensor, activation: Activation, *, activated: Activated, bias_I: torch.Tensor | None
) -> torch.Tensor:
    """See ``api.glu``."""
    (out_TI,) = plan_launch(x_TI, activation, activated=activated, bias_I=bias_I).run(glu_kernel)
    return out_TI


def plan_launch(
    x_TI: torch.Tensor, activation: Activation, *, activated: Activated, bias_I: torch.Tensor | None
) -> Launch:
    """The launch of ``glu``."""
    x = lay_columns_side_by_side(x_TI)
    num_rows, width = x.shape
    num_columns = width if activated == "all" else width // 2
    out = torch.empty(num_rows, num_columns, dtype=x.dtype, device=x.device)
    arguments = (
        x,
        x if bias_I is None else bias_I,
        out,
        x.stride(0),
        num_rows,
        num_columns,
        num_columns if activated == "last" else 0,
        num_columns if activated == "first" else 0,
    )
    constants: dict[str, int | bool | str] = {
        "ACTIVATION": activation,
        "IS_GATED": activated != "all",
        "HAS_BIAS": bias_I is not None,
        "TILE_ROWS": _TILE_ROWS,
        "TILE_COLUMNS": _TILE_COLUMNS,
        "num_warps": _NUM_WARPS,
    }
    # Rows go first: the second side of a grid ends at 65,535.
    grid = (triton.cdiv(num_rows, _TILE_ROWS), triton.cdiv(num_columns, _TILE_COLUMNS))
    return Launch(outputs=(out,), grid=grid, arguments=arguments, constants=constants)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    # x / (1 + exp(-u)); GELU by tanh is the same with u twice the argument of tanh.
    u = x
    if ACTIVATION == "gelu_tanh":
        u = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-u))


@triton.jit
def glu_kernel(
    X,
    BIAS,
    OUT,
    x_stride,
    num_rows,
    num_columns,
    own_start,
    other_start,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    is_column = column < num_columns
    is_inside = (row < num_rows)[:, None] & is_column[None, :]
    x_place = X + row.to(tl.int64)[:, None] * x_stride + column[None, :]
    x = tl.load(x_place + own_start, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(BIAS + own_start + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    y = _activate(x, ACTIVATION)
    if IS_GATED:
        gate = tl.load(x_place + other_start, mask=is_inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            gate += tl.load(BIAS + other_start + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        y *= gate
    out_place = OUT + row.to(tl.int64)[:, None] * num_columns + column[None, :]
    tl.store(out_place, y.to(OUT.dtype.element_ty), mask=is_inside)
