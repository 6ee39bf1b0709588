"""Masks tried at the correction rows: what is found there is what the whole layer measures, and a refusal is cheap."""

from __future__ import annotations

import math

import pytest
import torch

from lodestream.kernels import sparse_attention
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import choose_step, sample_tokens
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.attention.trial import try_masks
from lodestream.kernels.block_mask import MaskRecipe, build_masks
from lodestream.kernels.gpu_check.attention_oracle import make_inputs
from lodestream.kernels.sparse_attention import HOPELESS, attend_sparsely, is_hopeless

SHARES = (0.2, 0.4, 0.7)
RECIPES = [MaskRecipe(max_share=share) for share in SHARES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(517, 32), (1344, 64), (2049, 32)])
def test_what_is_tried_is_what_is_measured(num_tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in make_inputs(num_tokens, head_dim))
    layout = plan_blocks([num_tokens])
    is_exact = torch.zeros(layout.num_rows, dtype=torch.bool)
    is_exact[1] = True
    cells = summarise_cells(k, v, layout)
    masks = build_masks(q, cells, layout, RECIPES, exact_R=is_exact)
    trial = try_masks(q, k, v, cells, masks, scale=head_dim**-0.5)
    measured = []
    for recipe, mask in zip(RECIPES, masks, strict=True):
        result = attend_sparsely(q, k, v, layout, [recipe], bound=math.inf, exact_R=is_exact)
        assert result is not None
        assert torch.equal(result.mask.keep_HP, mask.keep_HP)
        measured.append(float(result.error.summarise()[0]))
    rounding = 2e-5 if dtype == torch.float32 else 0.03
    assert trial.errors_M.tolist() == pytest.approx(measured, rel=rounding)
    assert measured == sorted(measured, reverse=True), "the more is kept, the smaller is the error"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_correction_rows_of_a_trial_are_dense_attention(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in make_inputs(1001, 32))
    layout = plan_blocks([1001])
    cells = summarise_cells(k, v, layout)
    trial = try_masks(q, k, v, cells, build_masks(q, cells, layout, RECIPES[:1]), scale=32**-0.5)
    sampled = sample_tokens(layout.segments[0], choose_step(1001))
    dense = attend_dense(q, k, v, layout)[sampled].float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(trial.exact_SHD, dense, atol=tolerance, rtol=tolerance)


def test_a_share_that_does_not_do_is_never_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = make_inputs(1500, 32)
    layout = plan_blocks([1500])
    cells = summarise_cells(k, v, layout)
    errors = try_masks(q, k, v, cells, build_masks(q, cells, layout, RECIPES), scale=32**-0.5).errors_M.tolist()
    kept, attend = [], sparse_attention.attend

    def count(*arguments: object, **named: object) -> object:
        kept.append(float(arguments[3].keep_HP.float().mean()))  # type: ignore[attr-defined]
        return attend(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sparse_attention, "attend", count)
    between = (errors[1] + errors[2]) / 2
    result = attend_sparsely(q, k, v, layout, RECIPES, bound=between)
    assert result is not None
    assert result.place == 2
    assert kept == [pytest.approx(0.7, abs=0.05)], "one call, of the share that does"
    assert attend_sparsely(q, k, v, layout, RECIPES, bound=0.9 * errors[2]) is None
    assert len(kept) == 1


def test_few_heads_tell_what_is_hopeless() -> None:
    q, k, v = make_inputs(1500, 32, num_heads=8)
    layout = plan_blocks([1500])
    few = [x[:, ::4] for x in (q, k, v)]
    cells = summarise_cells(few[1], few[2], layout)
    masks = build_masks(few[0], cells, layout, RECIPES[-1:])
    error = float(try_masks(*few, cells, masks, scale=32**-0.5).errors_M)
    assert is_hopeless(q, k, v, layout, RECIPES[-1], bound=0.99 * error / HOPELESS)
    assert not is_hopeless(q, k, v, layout, RECIPES[-1], bound=1.01 * error / HOPELESS)
    v[700] = float("nan")
    assert is_hopeless(q, k, v, layout, RECIPES[-1], bound=math.inf), "what is no number is over every bound"
