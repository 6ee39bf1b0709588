"""The small operators in float64, from their definitions, with the error that other forms may have.

Budgets are per value and follow from the roundings that a form makes: a sum of C float32 terms is off by at most about
sqrt(C) roundings of its largest part, a result is rounded once to its dtype. They share no code with what they judge.

T rows, C width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.glu.kinds import Activated, Activation
from lodestream.kernels.norm import Norm
from lodestream.kernels.rope.table import RotaryTable

_UNIT32: Final = 2.0**-24


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Values in float64 and, of the same shape or one that spreads to it, the largest error that is allowed."""

    values: torch.Tensor
    budget: torch.Tensor


def measure_excess(found: torch.Tensor, expected: Expected) -> float:
    """Largest error as a share of what is allowed; infinite where a shape differs or a value is no number."""
    if found.shape != expected.values.shape:
        return math.inf
    if not found.numel():
        return 0.0
    share = (found.double() - expected.values).abs() / expected.budget
    return math.inf if bool(share.isnan().any()) else float(share.max())


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def round_once(values: torch.Tensor, error: torch.Tensor, dtype: torch.dtype) -> Expected:
    """Values that are off by ``error`` and are then rounded to ``dtype``; below its normal range the step is fixed."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return Expected(values=values, budget=error + 1.01 * _unit(dtype) * (values.abs() + error) + smallest)


def expect_norm(x_TC: torch.Tensor, error_T1: torch.Tensor, norm: Norm, dtype: torch.dtype) -> Expected:
    """Norm of float64 rows, each value of which is off by up to ``error_T1``."""
    dim = x_TC.shape[-1]
    weight = norm.weight_C.double() + (1 if norm.adds_one else 0)
    bias = torch.zeros_like(weight) if norm.bias_C is None else norm.bias_C.double()
    largest = x_TC.abs().amax(-1, keepdim=True)
    if norm.kind == "layer":
        # The mean is off by its own sum, and by as much as every value at worst.
        error_T1 = 2 * error_T1 + _UNIT32 * (math.sqrt(dim) + 2) * largest
        x_TC = x_TC - x_TC.mean(-1, keepdim=True)
    deviation = (x_TC.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    normed = x_TC / deviation
    relative = _UNIT32 * (math.sqrt(dim) + 6) + 2 * error_T1 / deviation
    error = (error_T1 / deviation + normed.abs() * relative) * weight.abs()
    error = error + 2 * _UNIT32 * ((normed * weight).abs() + bias.abs())
    return round_once(normed * weight + bias, error, dtype)


def expect_add_norm(
    update_TC: torch.Tensor,
    residual_TC: torch.Tensor,
    norm: Norm,
    *,
    bias_C: torch.Tensor | None,
    update_norm: Norm | None,
    dtype: torch.dtype,
    rounds_sum: bool,
) -> tuple[Expected, Expected, Expected]:
    """(branch, stream that holds the sum, stream that holds the normed sum) of ``add_norm``.

    ``rounds_sum``: the sum is rounded to the dtype of the residual before the norm.
    """
    update, residual = update_TC.double(), residual_TC.double()
    error_T1 = torch.zeros_like(update[:, :1])
    if bias_C is not None:
        update = update + bias_C.double()
        error_T1 = _UNIT32 * update.abs().amax(1, keepdim=True)
    if update_norm is not None:
        normed = expect_norm(update, error_T1, update_norm, torch.float32)
        update, error_T1 = normed.values, normed.budget.amax(1, keepdim=True)
    total = update + residual
    error_T1 = error_T1 + _UNIT32 * total.abs().amax(1, keepdim=True)
    summed = round_once(total, error_T1, residual_TC.dtype)
    before_norm = summed.budget.amax(1, keepdim=True) if rounds_sum else error_T1
    return (
        expect_norm(total, before_norm, norm, dtype),
        summed,
        expect_norm(total, before_norm, norm, residual_TC.dtype),
    )


def expect_embed_norm(
    token_ids_T: torch.Tensor,
    tables: EmbeddingTables,
    norm: Norm,
    *,
    positions_T: torch.Tensor | None,
    types_T: torch.Tensor | None,
    dtype: torch.dtype,
    stream_dtype: torch.dtype,
    num_rows: int,
) -> tuple[Expected, Expected, Expected]:
    """(branch, stream that holds the sum, stream that holds the normed sum) of ``embed_norm``."""
    parts = [tables.words_VC.double()[token_ids_T.long()]]
    if tables.positions_PC is not None:
        assert positions_T is not None
        parts.append(tables.positions_PC.double()[positions_T.long() + tables.first_position])
    if tables.types_UC is not None:
        rows = torch.zeros_like(token_ids_T) if types_T is None else types_T
        parts.append(tables.types_UC.double()[rows.long()])
    total = torch.zeros(num_rows, tables.words_VC.shape[1], dtype=torch.float64, device=token_ids_T.device)
    total[: len(token_ids_T)] = torch.stack(parts).sum(0) * tables.scale
    largest = torch.zeros_like(total)
    largest[: len(token_ids_T)] = torch.stack(parts).abs().sum(0) * abs(tables.scale)
    error_T1 = 3 * _UNIT32 * largest.amax(1, keepdim=True)
    return (
        expect_norm(total, error_T1, norm, dtype),
        round_once(total, error_T1, stream_dtype),
        expect_norm(total, error_T1, norm, stream_dtype),
    )


def expect_glu(
    x_TI: torch.Tensor,
    activation: Activation,
    *,
    activated: Activated,
    bias_I: torch.Tensor | None,
    rounds_steps: bool,
) -> Expected:
    """``rounds_steps``: what bias and activation give is rounded to the dtype."""
    unit = _unit(x_TI.dtype) if rounds_steps else _UNIT32
    x = x_TI.double() + (0 if bias_I is None else bias_I.double())
    own, other = x, torch.ones_like(x)
    if activated != "all":
        own, other = x.chunk(2, 1) if activated == "first" else reversed(x.chunk(2, 1))
    error = torch.zeros_like(own) if bias_I is None else unit * own.abs()
    other_error = torch.zeros_like(own) if bias_I is None or activated == "all" else unit * other.abs()
    # The slope of an activation is below 1.13; its exponential or error function is off by a few roundings of 1.
    error = 1.13 * error + 8 * _UNIT32 * own.abs() + unit * own.abs()
    values = _activate(own, activation)
    tiny = torch.finfo(x_TI.dtype).smallest_normal * torch.finfo(x_TI.dtype).eps
    error = (error + (tiny if rounds_steps else 0)) * other.abs() + values.abs() * other_error
    return round_once(values * other, error + 2 * _UNIT32 * (values * other).abs(), x_TI.dtype)


def _activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "gelu":
        normal: torch.Tensor = torch.special.erfc(-x / math.sqrt(2))
        return x * 0.5 * normal
    u = x if activation == "silu" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * torch.sigmoid(u)


def expect_rope(x_THD: torch.Tensor, positions_T: torch.Tensor, table: RotaryTable, norm: Norm | None) -> Expected:
    """What ``rope`` makes of queries or of keys, the table taken at its word."""
    x, relative = x_THD.double(), 0.0
    if norm is not None:
        deviation = (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        x = x / deviation * (norm.weight_C.double() + (1 if norm.adds_one else 0))
        relative = _UNIT32 * (math.sqrt(x.shape[2]) + 6)
    cos, sin = (angles.double()[positions_T.long()][:, None, :] for angles in (table.cos_PR, table.sin_PR))
    first, last = x.chunk(2, 2)
    values = torch.cat([first * cos - last * sin, last * cos + first * sin], 2)
    sizes = torch.cat([(first * cos).abs() + (last * sin).abs(), (last * cos).abs() + (first * sin).abs()], 2)
    return round_once(values, sizes * (relative + 2 * _UNIT32), x_THD.dtype)
