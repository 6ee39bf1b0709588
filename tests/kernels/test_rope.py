"""Rotary positions on a CPU, against float64."""

from __future__ import annotations

import math

import pytest
import torch

from lodestream.kernels.gpu_check.inputs import DTYPES, make_norm, make_rows
from lodestream.kernels.gpu_check.oracle import expect_rope, measure_excess
from lodestream.kernels.norm import Norm
from lodestream.kernels.rope.api import rope
from lodestream.kernels.rope.table import make_rotary_table


def make_heads(num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return make_rows(num_tokens, num_heads * head_dim, dtype=dtype, seed=seed).view(num_tokens, num_heads, head_dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("norm", [None, "rms", "1 + rms"])
def test_results_are_those_of_float64(head_dim: int, dtype: torch.dtype, norm: str | None) -> None:
    table = make_rotary_table(theta=10_000.0, head_dim=head_dim, num_positions=600)
    norms = [None if norm is None else make_norm("rms", head_dim, adds_one=norm != "rms", seed=i) for i in (1, 2)]
    for num_tokens in (1, 63, 517):
        q, k = make_heads(num_tokens, 4, head_dim, dtype), make_heads(num_tokens, 2, head_dim, dtype, seed=1)
        positions = torch.arange(num_tokens) * 7 % 600
        turned = rope(q, k, positions, table, q_norm=norms[0], k_norm=norms[1])
        for x, found, own_norm in zip((q, k), turned, norms, strict=True):
            assert found.dtype == dtype
            assert found.is_contiguous()
            assert measure_excess(found, expect_rope(x, positions, table, own_norm)) <= 1


def test_queries_may_be_a_view_of_all_projections() -> None:
    qkv = make_heads(63, 8, 32, torch.float32)
    q, k = qkv[:, :4], qkv[:, 4:6]
    table = make_rotary_table(theta=10_000.0, head_dim=32, num_positions=63)
    apart = rope(q.contiguous(), k.contiguous(), torch.arange(63), table)
    for found, expected in zip(rope(q, k, torch.arange(63), table), apart, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("theta", [10_000.0, 160_000.0])
def test_the_table_holds_the_angles(theta: float) -> None:
    table = make_rotary_table(theta=theta, head_dim=64, num_positions=8192)
    frequencies = theta ** (-torch.arange(0, 64, 2).double() / 64)
    angles = torch.arange(8192).double()[:, None] * frequencies
    # A frequency is off by a few roundings, and with it the angle; the angle by one more.
    budget = 4 * 2.0**-24 * angles + 2.0**-23
    assert bool(((table.cos_PR.double() - angles.cos()).abs() <= budget).all())
    assert bool(((table.sin_PR.double() - angles.sin()).abs() <= budget).all())


def test_products_depend_on_distance_alone() -> None:
    table = make_rotary_table(theta=10_000.0, head_dim=64, num_positions=300)
    q, k = make_heads(1, 1, 64, torch.float32), make_heads(1, 1, 64, torch.float32, seed=1)
    products = []
    for start in (0, 200):
        turned_q, _ = rope(q, k, torch.tensor([start + 11]), table)
        _, turned_k = rope(q, k, torch.tensor([start]), table)
        products.append(float((turned_q.double() * turned_k.double()).sum()))
    size = float(q.norm() * k.norm())
    assert math.isclose(*products, abs_tol=size * 300 * 2**-22)


@pytest.mark.parametrize(
    ("k", "positions", "table", "norm"),
    [
        (torch.zeros(3, 2, 16), torch.arange(3), 16, None),
        (torch.zeros(3, 2, 32, dtype=torch.float16), torch.arange(3), 16, None),
        (torch.zeros(3, 2, 32), torch.arange(4), 16, None),
        (torch.zeros(3, 2, 32), torch.arange(3), 32, None),
        (torch.zeros(3, 2, 32), torch.arange(3), 16, make_norm("layer", 32)),
    ],
)
def test_what_does_not_fit_is_refused(k: torch.Tensor, positions: torch.Tensor, table: int, norm: Norm | None) -> None:
    angles = make_rotary_table(theta=1.0, head_dim=2 * table, num_positions=8)
    with pytest.raises(ValueError, match=r"shape|dtype|positions|pairs|RMSNorm|\[T, H, D\]"):
        rope(torch.zeros(3, 4, 32), k, positions, angles, q_norm=norm)
