"""The Triton kernels of activations and of rotary positions in Triton's interpreter, with TRITON_INTERPRET=1.

``test_operators_fused.py`` runs this.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from lodestream.kernels.glu import fused as glu_fused
from lodestream.kernels.glu.kinds import Activated, Activation
from lodestream.kernels.gpu_check.inputs import DTYPES, ODD_ROWS, make_hard_rows, make_rows, name_norm
from lodestream.kernels.gpu_check.oracle import expect_glu, expect_rope, measure_excess
from lodestream.kernels.rope import fused as rope_fused
from lodestream.kernels.rope.table import make_rotary_table
from tests.support.interpreted_launch import launch_kernel, measure_mutant, surround


def excess_glu(
    x: torch.Tensor,
    activation: Activation,
    activated: Activated,
    bias: torch.Tensor | None,
    module: ModuleType = glu_fused,
) -> float:
    launch = module.plan_launch(surround(x), activation, activated=activated, bias_I=bias)
    launch_kernel(module.glu_kernel, launch, *launch.outputs)
    expected = expect_glu(x, activation, activated=activated, bias_I=bias, rounds_steps=False)
    return measure_excess(launch.outputs[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activated", get_args(Activated))
@pytest.mark.parametrize("activation", get_args(Activation))
def test_glu(activation: Activation, activated: Activated, dtype: torch.dtype) -> None:
    for num_rows, width in zip(ODD_ROWS, (1536, 384, 2 * 1152, 128), strict=True):
        x, bias = make_rows(num_rows, width, dtype=dtype), make_rows(1, width, dtype=dtype, seed=8)[0]
        assert excess_glu(x, activation, activated, bias) <= 1
    assert excess_glu(make_rows(5, 200, dtype=dtype), activation, activated, None) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_glu_of_hard_rows(activation: Activation, dtype: torch.dtype) -> None:
    for activated in get_args(Activated):
        assert excess_glu(make_hard_rows(192, dtype), activation, activated, None) <= 1


def excess_rope(
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    norm: str | None,
    *,
    indices: torch.dtype = torch.int64,
    module: ModuleType = rope_fused,
) -> float:
    table = make_rotary_table(theta=10_000.0, head_dim=head_dim, num_positions=600)
    positions = (torch.arange(num_tokens) * 7 % 600).to(indices)
    norms = [None if norm is None else name_norm(norm, head_dim, seed=seed) for seed in (1, 2)]
    total = sum(heads)
    qkv = surround(make_rows(num_tokens, total * head_dim, dtype=dtype)).unflatten(1, (total, head_dim))
    q, k = qkv[:, : heads[0]], qkv[:, heads[0] :]
    launch = module.plan_launch(q, k, positions, table, q_norm=norms[0], k_norm=norms[1])
    launch_kernel(module.rope_kernel, launch, *launch.outputs)
    return max(
        measure_excess(found, expect_rope(x, positions, table, own))
        for x, found, own in zip((q, k), launch.outputs, norms, strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [None, "rms", "1 + rms"])
def test_rope(norm: str | None, dtype: torch.dtype) -> None:
    for heads, head_dim in (((12, 12), 32), ((12, 2), 64), ((3, 1), 128), ((4, 4), 96)):
        assert excess_rope(9, heads, head_dim, dtype, norm) <= 1


@pytest.mark.parametrize("num_tokens", ODD_ROWS)
def test_rope_of_many_tokens(num_tokens: int) -> None:
    assert excess_rope(num_tokens, (4, 2), 64, torch.bfloat16, "rms", indices=torch.int32) <= 1


def measure_glu(module: ModuleType) -> float:
    x, bias = make_rows(19, 400), make_rows(1, 400, seed=8)[0]
    return max(
        excess_glu(x, activation, activated, bias, module)
        for activation in get_args(Activation)
        for activated in get_args(Activated)
    )


def measure_rope(module: ModuleType) -> float:
    return max(excess_rope(5, (3, 2), 64, torch.float32, norm, module=module) for norm in (None, "1 + rms"))


GLU_MUTATIONS = {
    "erf without its root": ("x * 0.7071067811865476", "x * 0.7"),
    "the tanh form without its cube": ("0.044715 * x * x * x", "0.044715 * x * x"),
    "the sign of the exponent": ("tl.exp(-u)", "tl.exp(u)"),
    "gate and activated half change places": (
        'num_columns if activated == "last" else 0',
        'num_columns if activated == "first" else 0',
    ),
    "the gate's bias is that of the other half": ("BIAS + other_start", "BIAS + own_start"),
    "the last columns are written twice as wide": (
        "is_column = column < num_columns",
        "is_column = column < num_columns + 1",
    ),
    "the last row is left out": ("(row < num_rows)", "(row < num_rows - 1)"),
}
ROPE_MUTATIONS = {
    "turned the other way": (
        "first * cos[None, :] - last * sin[None, :]",
        "first * cos[None, :] + last * sin[None, :]",
    ),
    "neighbouring values make the pairs": ("pair[None, :]\n    first", "2 * pair[None, :]\n    first"),
    "positions are those of the batch": ("position = tl.load(POSITIONS + token)", "position = token"),
    "keys take the norm of the queries": ("k_out, K_WEIGHT", "k_out, Q_WEIGHT"),
    "the norm of half a head": ("first * first + last * last", "2.0 * first * first"),
    "heads beyond the last": ("(head < HEADS)", "(head < TILE)"),
    "a norm without eps": ("(0.5 / R) + eps", "(0.5 / R) + 1.0"),
}


def test_kernels_without_a_mutation_pass(tmp_path: Path) -> None:
    assert measure_mutant(glu_fused, tmp_path, ("tl.store", "tl.store"), measure_glu) <= 1
    assert measure_mutant(rope_fused, tmp_path, ("tl.store", "tl.store"), measure_rope) <= 1


@pytest.mark.parametrize("name", GLU_MUTATIONS)
def test_mutation_of_glu_is_found(name: str, tmp_path: Path) -> None:
    assert measure_mutant(glu_fused, tmp_path, GLU_MUTATIONS[name], measure_glu) > 1


@pytest.mark.parametrize("name", ROPE_MUTATIONS)
def test_mutation_of_rope_is_found(name: str, tmp_path: Path) -> None:
    assert measure_mutant(rope_fused, tmp_path, ROPE_MUTATIONS[name], measure_rope) > 1
