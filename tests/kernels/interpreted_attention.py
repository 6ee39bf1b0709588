"""The Triton kernel in Triton's interpreter. ``test_attention_fused.py`` runs this with TRITON_INTERPRET=1."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton

from lodestream.kernels.attention import fused
from lodestream.kernels.attention.cells import CellSummary
from lodestream.kernels.attention.layout import BlockMask, make_mask, mask_all, mask_window, plan_blocks
from lodestream.kernels.gpu_check.attention_oracle import (
    ODD_LENGTHS,
    attend_in_float64,
    make_cells,
    make_inputs,
    make_random_mask,
)
from tests.support.interpreted_launch import measure_mutant

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def run(
    qkv: Inputs, mask: BlockMask, cells: CellSummary | None, module: ModuleType = fused
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the kernel into outputs full of NaN: what it does not write is seen."""
    launch = module.plan_launch(*qkv, mask, cells, scale=qkv[0].shape[2] ** -0.5)
    out, lse = launch.outputs
    out.fill_(math.nan)
    lse.fill_(math.nan)
    module.attend_blocks_kernel[launch.grid](*launch.arguments, **launch.constants)
    return out, lse


def excess(qkv: Inputs, mask: BlockMask, compensation: str, module: ModuleType = fused) -> float:
    """Largest error of result or log-sum-exp as a share of what is allowed; infinite where one is no number."""
    out, lse = run(qkv, mask, make_cells(qkv[1], qkv[2], mask, compensation), module)
    expected = attend_in_float64(*qkv, mask, compensation=compensation)
    errors = (
        float((out.double() - expected.out_THD).abs().max()) / expected.out_budget,
        float((lse.double() - expected.lse_TH).abs().max()) / expected.lse_budget,
    )
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_results_are_those_of_float64(head_dim: int, dtype: torch.dtype) -> None:
    layout = plan_blocks(ODD_LENGTHS if head_dim == 32 else (63, 200))
    qkv = make_inputs(layout.num_tokens, head_dim, dtype=dtype)
    assert excess(qkv, make_random_mask(layout, num_heads=2), "slope") <= 1


@pytest.mark.parametrize("compensation", ["none", "means"])
@pytest.mark.parametrize("query_block", [64, 128])
def test_ingredients_and_rows_of_both_sizes(compensation: str, query_block: int) -> None:
    layout = plan_blocks((1, 63, 127, 200), query_block=query_block)
    assert excess(make_inputs(layout.num_tokens, 32), make_random_mask(layout, num_heads=2), compensation) <= 1


def test_everything_kept_is_dense_attention_for_all_heads_at_once() -> None:
    layout = plan_blocks((63, 200, 128))
    qkv = make_inputs(layout.num_tokens, 32, num_heads=3)
    mask = mask_all(layout)
    assert mask.keep_HP.shape[0] == 1
    assert excess(qkv, mask, "slope") <= 1
    dense = [
        torch.nn.functional.scaled_dot_product_attention(*(x[s.tokens].transpose(0, 1) for x in qkv)).transpose(0, 1)
        for s in layout.segments
    ]
    torch.testing.assert_close(run(qkv, mask, None)[0], torch.cat(dense), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [16, 128, 1000])
def test_window(window: int) -> None:
    layout = plan_blocks((1, 63, 300))
    assert excess(make_inputs(364, 32), mask_window(layout, window=window), "none") <= 1


@pytest.mark.parametrize("factor", [1e-4, 30.0])
def test_extreme_logits(factor: float) -> None:
    q, k, v = make_inputs(200, 32)
    mask = make_random_mask(plan_blocks((200,)), num_heads=2)
    assert excess((q * factor, k * factor, v), mask, "means") <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_order_and_what_they_hold_do_not_matter(dtype: torch.dtype) -> None:
    lengths = (130, 1, 200, 63)
    layout = plan_blocks(lengths)
    q, k, v = make_inputs(layout.num_tokens, 32, dtype=dtype)
    mask = make_random_mask(layout, num_heads=2)
    cells = make_cells(k, v, mask, "slope")
    together, lse = run((q, k, v), mask, cells)
    for segment in layout.segments:
        own = (q[segment.tokens], k[segment.tokens], v[segment.tokens])
        own_mask = make_mask(plan_blocks([segment.num_tokens]), mask.keep_HP[:, segment.pairs])
        alone, own_lse = run(own, own_mask, make_cells(own[1], own[2], own_mask, "slope"))
        assert torch.equal(together[segment.tokens], alone)
        assert torch.equal(lse[segment.tokens], own_lse)
    again, _ = run((q, k, v), mask, cells)
    assert torch.equal(again, together)
    middle = layout.segments[2].tokens
    for x in (q, k, v):
        x[: middle.start] = math.nan
        x[middle.stop :] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        poisoned, _ = run((q, k, v), mask, make_cells(k, v, mask, "slope"))
    assert torch.equal(poisoned[middle], together[middle])
    reordered = [layout.segments[i] for i in (2, 0, 3, 1)]
    tokens = torch.cat([torch.arange(s.token_start, s.token_start + s.num_tokens) for s in reordered])
    q, k, v = make_inputs(layout.num_tokens, 32, dtype=dtype)
    pairs = torch.cat([mask.keep_HP[:, s.pairs] for s in reordered], 1)
    other_mask = make_mask(plan_blocks([s.num_tokens for s in reordered]), pairs)
    other = (q[tokens], k[tokens], v[tokens])
    shuffled, _ = run(other, other_mask, make_cells(other[1], other[2], other_mask, "slope"))
    assert torch.equal(shuffled, together[tokens])


def test_reads_beyond_a_tensor_are_seen() -> None:
    q, k, v = make_inputs(200, 32)
    mask = make_random_mask(plan_blocks((200,)), num_heads=2)
    launch = fused.plan_launch(q, k, v, mask, None, scale=0.2)
    arguments = list(launch.arguments)
    arguments[1] = k[:100].contiguous()
    with pytest.raises(triton.runtime.errors.InterpreterError, match="out of bounds"):
        fused.attend_blocks_kernel[launch.grid](*arguments, **launch.constants)


MUTATIONS = {
    "keys of the last block are not masked": (
        'bias = tl.where(is_key, 0.0, float("-inf"))[None, :]',
        "bias = tl.where(is_key, 0.0, 0.0)[None, :]",
    ),
    "the last block is read beyond its end": ("mask=is_key[None, :], other=0.0", "mask=(is_key | True)[None, :]"),
    "results are written beyond the segment": (
        "tl.store(out_place, out.to(OUT.dtype.element_ty), mask=is_token[:, None])",
        "tl.store(out_place, out.to(OUT.dtype.element_ty))",
    ),
    "the sum is not rescaled": ("total = total * alpha + tl.sum(p, 1)", "total = total + tl.sum(p, 1)"),
    "the result is not rescaled": ("acc * alpha[:, None]", "acc"),
    "kept cells stand in as well": ("tl.where(is_kept == 0, tl.load", "tl.where(is_kept < 2, tl.load"),
    "counts of cells do not matter": (
        "tl.load(LOG_COUNTS + cell + place_c), float",
        "tl.minimum(tl.load(LOG_COUNTS + cell + place_c), 0.0), float",
    ),
    "the slope's share is not rescaled": ("total_cells * tl.exp2(m_cells - m) / total", "total_cells / total"),
    "the slope is transposed": (
        "slopes + place_d[:, None] * D + place_d[None, :]",
        "slopes + place_d[None, :] * D + place_d[:, None]",
    ),
    "the slope has no scale": ("(share * scale)", "share"),
    "a head reads another one's list": ("head.to(tl.int64) * pairs_stride", "0 * pairs_stride"),
    "the first block of a list is read twice": ("tl.load(order + pairs + i // TILES)", "tl.load(order + pairs)"),
    "a window reaches one token further": ("(distance <= REACH)", "(distance <= REACH + 1)"),
    "log-sum-exp to base 2": ("* 0.6931471805599453", "* 1.0"),
}


def measure(module: ModuleType) -> float:
    """Excess over a few small calls."""
    layout = plan_blocks((130, 63, 200))
    qkv = make_inputs(layout.num_tokens, 32)
    return max(
        excess(qkv, make_random_mask(layout, num_heads=2, share=0.6), "slope", module),
        excess(qkv, mask_window(layout, window=16), "none", module),
    )


def test_kernel_without_a_mutation_passes(tmp_path: Path) -> None:
    assert measure_mutant(fused, tmp_path, ("total = total * alpha", "total = total * alpha"), measure) <= 1


@pytest.mark.parametrize("name", MUTATIONS)
def test_planted_mutation_is_found(name: str, tmp_path: Path) -> None:
    assert measure_mutant(fused, tmp_path, MUTATIONS[name], measure) > 1
