"""Residual, bias and norm on a CPU, against float64."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from lodestream.kernels.add_norm.api import add_norm
from lodestream.kernels.gpu_check.inputs import DTYPES, ODD_ROWS, make_hard_rows, make_norm, make_rows
from lodestream.kernels.gpu_check.oracle import expect_add_norm, measure_excess
from lodestream.kernels.norm import Norm

Stream = Literal["sum", "normed"]


def excess(
    update: torch.Tensor,
    residual: torch.Tensor,
    norm: Norm,
    stream: Stream,
    bias: torch.Tensor | None = None,
    update_norm: Norm | None = None,
) -> float:
    branch, summed, normed = expect_add_norm(
        update, residual, norm, bias_C=bias, update_norm=update_norm, dtype=update.dtype, rounds_sum=True
    )
    found = add_norm(update, residual.clone(), norm, stream=stream, bias_C=bias, update_norm=update_norm)
    assert found[0].dtype == update.dtype
    assert found[1].dtype == residual.dtype
    return max(measure_excess(found[0], branch), measure_excess(found[1], summed if stream == "sum" else normed))


@pytest.mark.parametrize("num_rows", ODD_ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stream", ["sum", "normed"])
def test_results_are_those_of_float64(num_rows: int, dtype: torch.dtype, stream: Stream) -> None:
    update, residual = make_rows(num_rows, 384, dtype=dtype), make_rows(num_rows, 384, seed=1)
    assert excess(update, residual, make_norm("layer", 384), stream, bias=make_rows(1, 384)[0]) <= 1
    assert excess(update, residual, make_norm("rms", 384, adds_one=True), stream) <= 1
    sandwich = make_norm("rms", 384, adds_one=True, seed=9)
    assert excess(update, residual.to(dtype), make_norm("rms", 384), stream, update_norm=sandwich) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_hard_rows(dtype: torch.dtype, kind: str) -> None:
    rows = make_hard_rows(384, dtype)
    for residual in (torch.zeros_like(rows, dtype=torch.float32), rows.float()):
        assert excess(rows, residual, make_norm(kind, 384), "sum") <= 1


def test_sum_of_the_same_dtype_is_made_in_the_residual() -> None:
    update, residual = make_rows(5, 64), make_rows(5, 64, seed=1)
    expected = update + residual
    branch, stream = add_norm(update, residual, make_norm("layer", 64, bias=False), stream="sum")
    assert stream.data_ptr() == residual.data_ptr()
    assert torch.equal(stream, expected)
    branch, stream = add_norm(update, residual, make_norm("layer", 64), stream="normed")
    assert branch is stream


@pytest.mark.parametrize(
    ("update", "residual", "norm"),
    [
        (torch.zeros(3, 8), torch.zeros(3, 4), make_norm("rms", 8)),
        (torch.zeros(3, 8), torch.zeros(3, 8, dtype=torch.int32), make_norm("rms", 8)),
        (torch.zeros(3, 8), torch.zeros(3, 8), make_norm("rms", 4)),
    ],
)
def test_what_does_not_fit_is_refused(update: torch.Tensor, residual: torch.Tensor, norm: Norm) -> None:
    with pytest.raises(ValueError, match=r"shape|dtype|columns"):
        add_norm(update, residual, norm, stream="sum")


def test_norms_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no bias"):
        Norm(kind="rms", weight_C=torch.ones(4), bias_C=torch.ones(4), eps=1e-6)
    with pytest.raises(ValueError, match="weight"):
        Norm(kind="layer", weight_C=torch.ones(4), bias_C=torch.ones(3), eps=1e-6)
