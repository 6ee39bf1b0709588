"""The Triton kernels that end in a norm in Triton's interpreter, with TRITON_INTERPRET=1.

``test_operators_fused.py`` runs this.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lodestream.kernels.add_norm import fused as add_norm_fused
from lodestream.kernels.embed_norm import fused as embed_norm_fused
from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.gpu_check.inputs import (
    DTYPES,
    ODD_ROWS,
    WIDTHS,
    make_hard_rows,
    make_norm,
    make_rows,
    make_tables,
    make_tokens,
    name_norm,
)
from lodestream.kernels.gpu_check.oracle import expect_add_norm, expect_embed_norm, measure_excess
from lodestream.kernels.norm import Norm
from tests.support.interpreted_launch import launch_kernel, measure_mutant, surround

NORMS = ["layer", "layer without bias", "rms", "1 + rms"]


def excess_add_norm(
    update: torch.Tensor,
    residual: torch.Tensor,
    norm: Norm,
    stream: str,
    bias: torch.Tensor | None = None,
    update_norm: Norm | None = None,
    dtype: torch.dtype | None = None,
    module: ModuleType = add_norm_fused,
) -> float:
    dtype = update.dtype if dtype is None else dtype
    branch, summed, normed = expect_add_norm(
        update, residual, norm, bias_C=bias, update_norm=update_norm, dtype=dtype, rounds_sum=False
    )
    own = surround(residual)
    launch = module.plan_launch(
        surround(update), own, norm, stream=stream, bias_C=bias, update_norm=update_norm, dtype=dtype
    )
    is_one = launch.outputs[0].data_ptr() == own.data_ptr()
    assert is_one == (stream == "normed" and dtype == residual.dtype)
    launch_kernel(module.add_norm_kernel, launch, *([] if is_one else launch.outputs[:1]))
    around = own._base
    assert around is not None
    assert int(around.isnan().sum()) == around.numel() - own.numel(), "written beyond the rows"
    found = launch.outputs
    return max(measure_excess(found[0], branch), measure_excess(found[1], summed if stream == "sum" else normed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stream", ["sum", "normed"])
def test_add_norm(stream: str, norm: str, dtype: torch.dtype) -> None:
    for dim, num_rows in zip(WIDTHS, (1, 63, 20, 3), strict=True):
        update, residual = make_rows(num_rows, dim, dtype=dtype), make_rows(num_rows, dim, seed=1)
        assert excess_add_norm(update, residual, name_norm(norm, dim), stream) <= 1
        bias = make_rows(1, dim, dtype=dtype, seed=2)[0]
        assert excess_add_norm(update[:3], residual[:3].to(dtype), name_norm(norm, dim), stream, bias=bias) <= 1


@pytest.mark.parametrize("num_rows", ODD_ROWS)
def test_add_norm_of_many_rows(num_rows: int) -> None:
    update, residual = make_rows(num_rows, 384, dtype=torch.bfloat16), make_rows(num_rows, 384, seed=1)
    norm, before = name_norm("1 + rms", 384), name_norm("1 + rms", 384, seed=4)
    assert excess_add_norm(update, residual, norm, "sum", update_norm=before, dtype=torch.float32) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_add_norm_of_hard_rows(norm: str, dtype: torch.dtype) -> None:
    rows = make_hard_rows(384, dtype)
    assert excess_add_norm(rows, torch.zeros_like(rows), name_norm(norm, 384), "sum") <= 1
    assert excess_add_norm(rows, rows.float(), name_norm(norm, 384), "normed") <= 1


def test_rows_of_equal_values_become_the_bias() -> None:
    """With the eps of BERT the budget allows anything here: the variance is that of roundings, if there are any."""
    norm = make_norm("layer", 768, eps=1e-12)
    rows = torch.tensor([0.1, 3.0, 1e4])[:, None].expand(3, 768).contiguous()
    launch = add_norm_fused.plan_launch(
        rows, torch.zeros_like(rows), norm, stream="sum", bias_C=None, update_norm=None, dtype=torch.float32
    )
    launch_kernel(add_norm_fused.add_norm_kernel, launch, launch.outputs[0])
    assert norm.bias_C is not None
    assert torch.equal(launch.outputs[0][1:], norm.bias_C.expand(2, -1))


def excess_embed_norm(
    num_tokens: int,
    tables: EmbeddingTables,
    norm: Norm,
    stream: str,
    dtype: torch.dtype,
    *,
    own_types: bool,
    indices: torch.dtype = torch.int64,
    module: ModuleType = embed_norm_fused,
) -> float:
    tokens = make_tokens(num_tokens).to(indices)
    has_positions = tables.positions_PC is not None
    arguments: dict[str, Any] = {
        "positions_T": torch.arange(num_tokens).to(indices) if has_positions else None,
        "types_T": make_tokens(num_tokens, limit=2).to(indices) if own_types else None,
        "dtype": dtype,
        "stream_dtype": torch.float32,
        "num_rows": num_tokens + 3,
    }
    branch, summed, normed = expect_embed_norm(tokens, tables, norm, **arguments)
    launch = module.plan_launch(tokens, tables, norm, stream=stream, **arguments)
    launch_kernel(module.embed_norm_kernel, launch, *launch.outputs)
    found = launch.outputs
    return max(measure_excess(found[0], branch), measure_excess(found[1], summed if stream == "sum" else normed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", ["words", "positions", "types", "all"])
def test_embed_norm(parts: str, dtype: torch.dtype) -> None:
    positions, types = parts in {"positions", "all"}, parts in {"types", "all"}
    for dim, num_tokens in zip(WIDTHS, (1, 63, 20, 3), strict=True):
        tables = make_tables(dim, positions=positions, types=types, dtype=dtype, first_position=2)
        norm = name_norm("1 + rms" if parts == "words" else "layer", dim)
        for stream in ("sum", "normed"):
            assert excess_embed_norm(num_tokens, tables, norm, stream, dtype, own_types=parts == "all") <= 1


@pytest.mark.parametrize("num_tokens", ODD_ROWS)
def test_embed_norm_of_many_tokens(num_tokens: int) -> None:
    tables, norm = make_tables(384, first_position=2), name_norm("layer", 384)
    excess = excess_embed_norm(num_tokens, tables, norm, "normed", torch.float32, own_types=True, indices=torch.int32)
    assert excess <= 1


def measure_add_norm(module: ModuleType) -> float:
    update, residual, bias = make_rows(5, 384), make_rows(5, 384, seed=1), make_rows(1, 384, seed=2)[0]
    layer, rms, before = name_norm("layer", 384), name_norm("1 + rms", 384), name_norm("rms", 384, seed=4)
    constant = torch.full((2, 384), 1e4)
    return max(
        excess_add_norm(update, residual, layer, "sum", bias=bias, dtype=torch.bfloat16, module=module),
        excess_add_norm(update, residual, rms, "normed", update_norm=before, dtype=torch.bfloat16, module=module),
        excess_add_norm(constant, constant, layer, "normed", module=module),
        excess_add_norm(update * 1e-4, residual * 1e-4, layer, "normed", module=module),
    )


def measure_embed_norm(module: ModuleType) -> float:
    tables, norm = make_tables(384, first_position=2), name_norm("layer", 384)
    words = make_tables(384, positions=False, types=True)
    return max(
        excess_embed_norm(9, tables, norm, "sum", torch.bfloat16, own_types=True, module=module),
        excess_embed_norm(9, words, norm, "sum", torch.bfloat16, own_types=False, module=module),
        excess_embed_norm(9, words, norm, "normed", torch.bfloat16, own_types=False, module=module),
    )


ADD_NORM_MUTATIONS = {
    "what fills a row counts in the variance": ("tl.where(is_column, x - mean, 0.0)", "x - mean"),
    "the mean is one over the block": ("tl.sum(x, 0), C * 1.0", "tl.sum(x, 0), C + 1.0"),
    "the variance is unbiased": ("(1.0 / C)", "(1.0 / (C - 1))"),
    "no eps": ("(1.0 / C) + eps", "(1.0 / C) + 1.0e-30"),
    "the weight is not one more": ("weight += 1.0", "weight += 0.0"),
    "the norm's bias is left out": ("if (NORM & 4) != 0:", "if (NORM & 4) == 1:"),
    "the bias is left out": ("if HAS_BIAS:", "if HAS_BIAS == 2:"),
    "the update's norm takes the other eps": ("UPDATE_BIAS, update_eps", "UPDATE_BIAS, update_eps * 1.0e5"),
    "the stream is the normed sum": ('if STREAM == "sum"', 'if STREAM == "none"'),
    "the sum is written as the stream": ('if STREAM == "normed"', 'if STREAM == "none"'),
    "rows are written beyond their end": (
        "tl.store(branch_place, x.to(BRANCH.dtype.element_ty), mask=is_column)",
        "tl.store(branch_place, x.to(BRANCH.dtype.element_ty))",
    ),
    "rows of the update are taken for side by side": ("row * update_stride", "row * C"),
}
EMBED_NORM_MUTATIONS = {
    "positions begin at 0": ("positions[tables.first_position :]", "positions"),
    "types are those of the neighbour": ("TYPES_OF_TOKENS + token", "TYPES_OF_TOKENS + 0 * token"),
    "type 0 is left out": ('if TYPES == "all 0"', 'if TYPES == "nothing"'),
    "the scale is left out": ("x *= scale", "x *= 1.0"),
    "rows behind the tokens hold a word": ("tl.where(row < num_tokens, C, 0)", "C"),
    "the sum of the embeddings is not kept": ('if STREAM == "sum"', 'if STREAM == "none"'),
}


def test_kernels_without_a_mutation_pass(tmp_path: Path) -> None:
    assert measure_mutant(add_norm_fused, tmp_path, ("tl.store", "tl.store"), measure_add_norm) <= 1
    assert measure_mutant(embed_norm_fused, tmp_path, ("tl.store", "tl.store"), measure_embed_norm) <= 1


@pytest.mark.parametrize("name", ADD_NORM_MUTATIONS)
def test_mutation_of_add_norm_is_found(name: str, tmp_path: Path) -> None:
    assert measure_mutant(add_norm_fused, tmp_path, ADD_NORM_MUTATIONS[name], measure_add_norm) > 1


@pytest.mark.parametrize("name", EMBED_NORM_MUTATIONS)
def test_mutation_of_embed_norm_is_found(name: str, tmp_path: Path) -> None:
    assert measure_mutant(embed_norm_fused, tmp_path, EMBED_NORM_MUTATIONS[name], measure_embed_norm) > 1
