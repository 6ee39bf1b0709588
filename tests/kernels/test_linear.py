"""Packed linears: the same bits for few rows as for many, and few rows where few were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lodestream.kernels import linear
from lodestream.kernels.glu.kinds import Activation
from lodestream.kernels.linear import MANY_ROWS, PackedLinear, plan_rows
from lodestream.kernels.precision import native_precision

FEW = [1, *sorted({plan_rows(n) for n in range(1, MANY_ROWS)})]
SHAPES: list[tuple[int, int, Activation | None]] = [
    (384, 384, None),
    (1152, 384, None),
    (1536, 384, "gelu"),
    (384, 1536, None),
    (768, 3072, None),
    (64, 32, "silu"),
    (5, 7, None),
]
DTYPES = [torch.float32, torch.bfloat16] if native_precision() == "bf16" else [torch.float32]


@pytest.fixture(autouse=True)
def fresh_threads_and_answers() -> Iterator[None]:
    before = torch.get_num_threads()
    linear._is_alike.cache_clear()
    yield
    linear._is_alike.cache_clear()
    torch.set_num_threads(before)


def draw(num_rows: int, num_in: int, *, cancels: bool, seed: int) -> torch.Tensor:
    """float32 [num_rows, num_in]. Of two draws of which one cancels all sums of products are 0, but for rounding."""
    half = torch.randn(num_rows, num_in // 2, generator=torch.Generator().manual_seed(seed))
    rest = torch.zeros(num_rows, num_in % 2)
    return torch.cat([half, -half if cancels else half, rest], 1)


@pytest.mark.parametrize(("num_out", "num_in", "activation"), SHAPES)
def test_few_rows_get_the_bits_of_many(num_out: int, num_in: int, activation: Activation | None) -> None:
    weight = draw(num_out, num_in, cancels=False, seed=0)
    for dtype in DTYPES:
        packed = PackedLinear(weight, torch.zeros(num_out), dtype=dtype, activation=activation)
        for cancels in (True, False):
            x = draw(1024, num_in, cancels=cancels, seed=1).to(dtype)
            torch.set_num_threads(2)
            wanted = packed(x)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                for rows in FEW:
                    assert torch.equal(packed(x[:rows]), wanted[:rows]), (dtype, cancels, threads, rows)


def test_a_processor_that_adds_few_rows_in_another_order_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of_calls: list[int] = []

    def add_in_halves(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, _: Any) -> torch.Tensor:
        rows_of_calls.append(len(x))
        if len(x) >= 192:
            return torch.nn.functional.linear(x, weight, bias)
        half = x.shape[1] // 2
        return (x[:, :half] @ weight[:, :half].T + x[:, half:] @ weight[:, half:].T).add(bias or 0)

    monkeypatch.setattr(linear, "_pack_weight", lambda weight: weight)
    monkeypatch.setattr(linear, "_run_packed", add_in_halves)
    for dtype in DTYPES:
        packed = PackedLinear(torch.randn(64, 1536), None, dtype=dtype)
        for rows, ran in ((3, MANY_ROWS), (128, MANY_ROWS), (130, 192), (300, 320), (MANY_ROWS + 1, MANY_ROWS + 1)):
            packed(torch.zeros(rows, 1536, dtype=dtype))
            assert rows_of_calls[-1] == ran, (dtype, rows)


def test_few_rows_stay_few() -> None:
    filled = [plan_rows(n) for n in range(1, 5000)]
    assert filled == sorted(filled) and filled[0] == 16
    assert all(0 <= rows - n < max(16, n / 2) for n, rows in enumerate(filled, 1))
    assert len({rows for rows in filled if rows <= MANY_ROWS}) == 14
    assert {rows % 128 for rows in filled if rows > MANY_ROWS} == {0}


def test_what_is_not_packed_runs_over_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of_calls: list[int] = []
    run = torch.nn.functional.linear

    def count_rows(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows_of_calls.append(len(x))
        return run(x, *rest)

    monkeypatch.setattr(linear, "_is_right", lambda *_: False)
    monkeypatch.setattr(linear.F, "linear", count_rows)
    assert len(PackedLinear(torch.randn(8, 8), None, dtype=torch.float32)(torch.randn(3, 8))) == 3
    assert rows_of_calls == [MANY_ROWS]
