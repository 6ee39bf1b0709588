"""Activations and gates on a CPU, against float64."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from lodestream.kernels.glu.api import glu
from lodestream.kernels.glu.kinds import Activated, Activation
from lodestream.kernels.gpu_check.inputs import DTYPES, ODD_ROWS, make_hard_rows, make_rows
from lodestream.kernels.gpu_check.oracle import expect_glu, measure_excess


def excess(x: torch.Tensor, activation: Activation, activated: Activated, bias: torch.Tensor | None = None) -> float:
    expected = expect_glu(x, activation, activated=activated, bias_I=bias, rounds_steps=True)
    found = glu(x, activation, activated=activated, bias_I=bias)
    assert found.dtype == x.dtype
    return measure_excess(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activated", get_args(Activated))
@pytest.mark.parametrize("activation", get_args(Activation))
def test_results_are_those_of_float64(activation: Activation, activated: Activated, dtype: torch.dtype) -> None:
    for num_rows in ODD_ROWS:
        x = make_rows(num_rows, 192, dtype=dtype)
        assert excess(x, activation, activated) <= 1
        assert excess(x, activation, activated, bias=make_rows(1, 192, seed=8)[0]) <= 1


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_rows(activation: Activation, dtype: torch.dtype) -> None:
    rows = make_hard_rows(192, dtype)
    for activated in get_args(Activated):
        assert excess(rows, activation, activated) <= 1


def test_the_input_is_left_alone() -> None:
    x = make_rows(4, 8)
    before = x.clone()
    for activated in get_args(Activated):
        glu(x, "gelu", activated=activated, bias_I=torch.ones(8))
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("x", "bias"),
    [(torch.zeros(3, 7), None), (torch.zeros(3, 8, dtype=torch.int32), None), (torch.zeros(3, 8), torch.zeros(4))],
)
def test_what_does_not_fit_is_refused(x: torch.Tensor, bias: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"columns|dtype|\[T, I\]"):
        glu(x, "silu", activated="first", bias_I=bias)
