"""What an encoder calls: errors that are measured tell the truth, and layers over the bound climb."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lodestream.kernels.attention.budget import SegmentPlan, cut_segment, plan_segment
from lodestream.kernels.attention.correction import SampledError
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe
from lodestream.kernels.gpu_check.attention_oracle import make_inputs
from lodestream.kernels.segment_attention import AttentionLayer, DenseAttention
from lodestream.kernels.sparse_attention import ErrorTally, SparseSegment, attend_sparsely


def make_smooth_inputs(lengths: Sequence[int], noise: Sequence[float]) -> tuple[torch.Tensor, ...]:
    """Segments whose neighbours ask for the same, more or less; the noise decides how hard each is to correct."""
    parts = []
    for number, (length, share) in enumerate(zip(lengths, noise, strict=True)):
        q, k, v = make_inputs(length, 32, seed=number)
        parts.append((q[::32].repeat_interleave(32, 0)[:length] + share * q, k, v))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def make_error(values: list[float]) -> SampledError:
    errors = torch.tensor(values)
    return SampledError(before_S=errors, after_S=errors, bounds=(0, len(values)))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_measured_error_is_that_of_all_tokens_or_a_little_more(share: float) -> None:
    layout = plan_blocks([2000])
    q, k, v = make_smooth_inputs([2000], [0.2])
    result = attend_sparsely(q, k, v, layout, [MaskRecipe(max_share=share)], bound=math.inf)
    assert result is not None
    dense = attend_dense(q, k, v, layout)
    true = (result.out_THD - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
    measured = float(result.error.summarise()[0][0])
    assert float(true.mean()) <= measured <= 3 * float(true.mean())


def test_rows_of_full_density_are_exact() -> None:
    layout = plan_blocks([1500])
    q, k, v = make_inputs(1500, 32)
    is_exact = torch.zeros(layout.num_rows, dtype=torch.bool)
    is_exact[4] = True
    result = attend_sparsely(q, k, v, layout, [MaskRecipe(max_share=0.4)], bound=math.inf, exact_R=is_exact)
    assert result is not None
    error = (result.out_THD - attend_dense(q, k, v, layout)).flatten(1).norm(dim=1)
    assert float(error[512:640].max()) < 1e-4 < float(error[640:].mean())


def make_plan(num_tokens: int, *, shares: tuple[float, ...], bound: float, last_dense: bool = False) -> SegmentPlan:
    is_exact = np.zeros(cut_segment(num_tokens).num_rows, np.bool_)
    gate = GateTable(engine="e", head_dim=32, points=((1, 1.0),))
    plan = plan_segment(num_tokens, is_exact, shares=shares, bound=bound, last_dense=last_dense, gate=gate)
    assert plan is not None
    return plan


def run_layers(plan: SegmentPlan, layers: Sequence[Sequence[torch.Tensor]]) -> tuple[SparseSegment, list[torch.Tensor]]:
    segment, outs = SparseSegment(plan, num_layers=len(layers)), []
    for index, qkv in enumerate(layers):
        num_tokens, num_heads, head_dim = qkv[0].shape
        layer = AttentionLayer(index=index, num_heads=num_heads, num_key_heads=num_heads, scale=head_dim**-0.5)
        heads = torch.cat([torch.cat(list(qkv), 1), qkv[0].new_zeros(5, 3 * num_heads, head_dim)])
        mixed = segment(heads, layer)
        assert mixed.shape == (num_tokens + 5, num_heads * head_dim)
        outs.append(mixed[:num_tokens].view(num_tokens, num_heads, head_dim))
    return segment, outs


def test_a_layer_over_the_bound_climbs_and_ends_within_it() -> None:
    layers = [make_smooth_inputs([1500], [noise]) for noise in (0.01, 1.5, 0.01)]
    easy, outs = run_layers(make_plan(1500, shares=(0.25, 0.6), bound=1e9), layers)
    assert all(bool(torch.isfinite(out).all()) for out in outs)
    assert easy.num_climbs == 0
    errors = [mean for mean, _ in easy.tally.summarise()]
    bound = (max(errors[0], errors[2]) + errors[1]) / 2
    plan = make_plan(1500, shares=(0.25, 0.6), bound=bound)
    climbed, outs = run_layers(plan, layers)
    assert climbed.num_climbs >= 1
    assert climbed.kept[0] == climbed.kept[2] < 0.35 < climbed.kept[1], "each layer has the share that it needs"
    assert all(mean <= 1.03 * bound for mean, _ in climbed.tally.summarise())
    again = run_layers(plan, layers)[1]
    assert all(torch.equal(one, other) for one, other in zip(outs, again, strict=True)), "no state between calls"


def test_bound_that_nothing_keeps_ends_dense() -> None:
    layers = [make_smooth_inputs([700], [0.5])] * 2
    segment, outs = run_layers(make_plan(700, shares=(0.3,), bound=0), layers)
    layout = plan_blocks([700])
    assert segment.kept == [1.0, 1.0] and segment.num_climbs == 1, "after a dense layer none is tried"
    for out in outs:
        torch.testing.assert_close(out, attend_dense(*layers[0], layout))
    assert segment.tally.summarise() == [(0.0, 0.0)] * 2


def test_flops_are_those_of_what_was_computed() -> None:
    layers = [make_smooth_inputs([1500], [0.01])] * 3
    dense = 4 * 1500**2 * 32 * 2
    sparse = run_layers(make_plan(1500, shares=(0.3,), bound=1e9, last_dense=True), layers)[0]
    assert sparse.dense_flops == 3 * dense
    assert 1 + 2 * 0.3 < sparse.flops / dense < 1 + 2 * 0.6
    refused = run_layers(make_plan(1500, shares=(0.3,), bound=0), layers)[0]
    assert 3 * dense < refused.flops < 3.2 * dense, "what was tried in vain counts, once"


def test_an_error_that_is_no_number_climbs() -> None:
    q, k, v = make_smooth_inputs([700], [0.5])
    v[600] = float("nan")
    assert run_layers(make_plan(700, shares=(0.3,), bound=1e9), [(q, k, v)])[0].num_climbs == 1


def test_layers_with_a_window_are_what_they_are_without_a_plan() -> None:
    q, k, v = make_inputs(700, 32)
    heads = torch.cat([q, k, v], 1)
    layer = AttentionLayer(index=0, num_heads=q.shape[1], num_key_heads=q.shape[1], scale=32**-0.5, reach=64)
    segment = SparseSegment(make_plan(700, shares=(0.3,), bound=0), num_layers=2)
    wanted = DenseAttention([700], num_rows=700, dtype=torch.float32)(heads, layer)
    assert torch.equal(segment(heads, layer), wanted)
    assert segment.kept == [] and segment.num_climbs == 0, "a window is no part of the budget"


def test_last_layer_is_dense_where_the_plan_says_so() -> None:
    layers = [make_smooth_inputs([700], [0.5])] * 2
    segment = run_layers(make_plan(700, shares=(0.3,), bound=1e9, last_dense=True), layers)[0]
    assert segment.kept[0] < 0.4 and segment.kept[1] == 1.0


@pytest.mark.parametrize(("head_dim", "num_heads"), [(32, 1), (32, 5), (64, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(head_dim: int, num_heads: int, dtype: torch.dtype) -> None:
    qkv = [x.to(dtype) for x in make_inputs(3000, head_dim, num_heads=num_heads)]
    plan = make_plan(3000, shares=(0.4,), bound=1e9)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(run_layers(plan, [qkv])[1][0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_tally_of_parts_is_that_of_the_whole() -> None:
    values = torch.rand(3000, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = (ErrorTally(num_layers=2) for _ in range(3))
    whole.add(1, make_error(values))
    first.add(1, make_error(values[:1000]))
    second.add(1, make_error(values[1000:]))
    first.merge(second)
    assert torch.equal(whole.counts, first.counts)
    (mean, tail), true = whole.summarise()[1], torch.tensor(values)
    assert mean == pytest.approx(float(true.mean()), rel=0.03)
    exact = float(true.sort().values[2969])
    assert exact <= tail <= 1.1 * exact
    assert whole.summarise()[0] == (0.0, 0.0)


def test_tally_takes_what_is_nothing_or_no_number() -> None:
    tally = ErrorTally(num_layers=1)
    tally.add(0, make_error([0.0] * 99))
    assert tally.summarise()[0][1] == pytest.approx(2**-20)
    tally.add(0, make_error([float("nan"), float("inf"), 1e30]))
    assert tally.summarise()[0][1] > 10
