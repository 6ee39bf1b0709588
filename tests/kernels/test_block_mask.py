"""Masks: the fewest blocks that hold a share, forced blocks, exact rows, the budget; neighbours do not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.cost import account_flops
from lodestream.kernels.attention.layout import CELL, KEY_BLOCK, mask_all, plan_blocks
from lodestream.kernels.block_mask import (
    MaskRecipe,
    build_mask,
    choose_blocks,
    estimate_mass,
    force_blocks,
)
from lodestream.kernels.gpu_check.attention_oracle import ODD_LENGTHS, make_inputs, make_random_mask

NONE_EXACT = torch.zeros(64, dtype=torch.bool)


def make_mass(num_rows: int, num_blocks: int, *, num_heads: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(num_heads, num_rows, num_blocks, generator=generator), 2)


@pytest.mark.parametrize("num_tokens", ODD_LENGTHS)
@pytest.mark.parametrize("query_block", [64, 128])
def test_mass_is_that_of_means_and_variances(num_tokens: int, query_block: int) -> None:
    layout = plan_blocks([num_tokens], query_block=query_block)
    segment = layout.segments[0]
    q, k, v = make_inputs(num_tokens, 32)
    mass = estimate_mass(q, summarise_cells(k, v, layout), segment, query_block, scale=0.2)
    place = torch.arange(num_tokens)
    membership = torch.nn.functional.one_hot(place // CELL).double()
    counts = membership.sum(0)
    for head in range(2):
        means = [membership.T @ x[:, head].double() / counts[:, None] for x in (q, k)]
        deviations = k[:, head].double() - means[1][place // CELL]
        variances = membership.T @ deviations**2 / counts[:, None]
        logits = 0.2 * means[0] @ means[1].T + (0.2 * means[0]) ** 2 @ variances.T / 2
        weights = torch.softmax(logits + counts.log(), 1)
        for row in range(segment.num_rows):
            cells = slice(row * query_block // CELL, (row + 1) * query_block // CELL)
            for block in range(segment.num_blocks):
                keys = slice(block * KEY_BLOCK // CELL, (block + 1) * KEY_BLOCK // CELL)
                expected = float(weights[cells, keys].sum(1).mean())
                assert float(mass[head, row, block]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_rows_keep_the_fewest_blocks_that_hold_one_share_of_the_softmax(share: float) -> None:
    mass = make_mass(12, 24)
    keep = choose_blocks(mass, NONE_EXACT[:12], MaskRecipe(max_share=share, count_step=1))
    forced = force_blocks(12, 24, reach=1, device="cpu")
    assert bool(keep[:, forced].all())
    held = (mass * keep).sum(2)
    optional = torch.where(keep & ~forced, mass, math.inf).amin(2)
    has_optional = optional < math.inf
    assert bool(has_optional.any())
    # There is a share that all rows hold, and that no row would hold with one block less.
    assert float((held - optional)[has_optional].max()) < float(held.min()) + 1e-5
    dropped = torch.where(keep, 0, mass).amax(2)
    assert bool((dropped <= optional + 1e-6).all()), "a better block was dropped"


@pytest.mark.parametrize("count_step", [2, 4, 8])
def test_counts_are_multiples_of_the_step(count_step: int) -> None:
    keep = choose_blocks(make_mass(12, 23), NONE_EXACT[:12], MaskRecipe(max_share=0.7, count_step=count_step))
    counts = keep.sum(2)
    assert bool(((counts % count_step == 0) | (counts == 23)).all())
    assert len(counts.unique()) > 1


@settings(max_examples=30)
@given(
    share=st.floats(0.05, 1.0),
    num_blocks=st.integers(1, 40),
    step=st.sampled_from([1, 4]),
    seed=st.integers(0, 100),
    exact=st.booleans(),
)
def test_budget_is_held_and_used(share: float, num_blocks: int, step: int, seed: int, exact: bool) -> None:
    num_rows = -(-num_blocks // 2)
    mass = make_mass(num_rows, num_blocks, seed=seed)
    is_exact = torch.zeros(num_rows, dtype=torch.bool)
    is_exact[-1] = exact
    recipe = MaskRecipe(max_share=share, count_step=step)
    keep = choose_blocks(mass, is_exact, recipe)
    least = choose_blocks(mass, is_exact, MaskRecipe(max_share=1e-6, count_step=step))
    limit = math.floor(share * keep.numel())
    assert bool((keep | ~least).all()), "forced blocks and exact rows are kept whatever the budget"
    assert int(keep.sum()) <= max(limit, int(least.sum()))
    # What is left over is less than one more step of blocks for each row.
    if int(keep.sum()) < keep.numel() and int(least.sum()) <= limit:
        assert int(keep.sum()) > limit - step * keep.shape[0] * keep.shape[1]


def test_rows_of_dense_text_are_exact() -> None:
    layout = plan_blocks([1024, 300])
    is_exact = torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    q, k, v = make_inputs(1324, 32)
    cells = summarise_cells(k, v, layout)
    counts = build_mask(q, cells, layout, MaskRecipe(max_share=0.5), exact_R=is_exact).counts_HR
    assert counts[:, 1].tolist() == [16, 16] and counts[:, 10].tolist() == [5, 5]
    plain = build_mask(q, cells, layout, MaskRecipe(max_share=0.5)).counts_HR
    assert bool((plain[:, [1, 10]] < counts[:, [1, 10]]).all())
    assert bool((plain >= counts)[:, ~is_exact].all()), "exact rows share the budget"


def test_reach_decides_about_the_neighbourhood() -> None:
    expected = {
        0: ["11000000", "10110000", "10001100", "10000011"],
        1: ["11100000", "11111000", "10011110", "10000111"],
    }
    for reach, rows in expected.items():
        forced = force_blocks(4, 8, reach=reach, device="cpu")
        assert ["".join(str(int(x)) for x in row) for row in forced] == rows
    assert force_blocks(1, 1, reach=0, device="cpu").all()


def test_neighbours_and_order_do_not_matter() -> None:
    lengths = [517, 1, 1200, 127]
    layout = plan_blocks(lengths)
    q, k, v = make_inputs(layout.num_tokens, 32)
    recipe = MaskRecipe(max_share=0.5)
    together = build_mask(q, summarise_cells(k, v, layout), layout, recipe)
    for segment in layout.segments:
        own, own_layout = segment.tokens, plan_blocks([segment.num_tokens])
        alone = build_mask(q[own], summarise_cells(k[own], v[own], own_layout), own_layout, recipe)
        assert torch.equal(together.keep_HP[:, segment.pairs], alone.keep_HP)
        assert torch.equal(together.counts_HR[:, segment.rows], alone.counts_HR)
        assert torch.equal(together.order_HP[:, segment.pairs], alone.order_HP)


def test_heads_in_parts_give_the_same_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = make_inputs(700, 32, num_heads=5)
    layout = plan_blocks([700])
    segment, cells = layout.segments[0], summarise_cells(k, v, layout)
    whole = estimate_mass(q, cells, segment, 128, scale=0.2)
    monkeypatch.setattr("lodestream.kernels.block_mask._SCORES_AT_ONCE", 2 * 44**2)
    torch.testing.assert_close(estimate_mass(q, cells, segment, 128, scale=0.2), whole)


def test_lists_name_the_kept_blocks_first() -> None:
    layout = plan_blocks([517, 1])
    mask = make_random_mask(layout, num_heads=2)
    for segment in layout.segments:
        keep, order = mask.keep_of(segment), mask.order_of(segment)
        for head in range(2):
            for row in range(segment.num_rows):
                count = int(mask.counts_HR[head, segment.row_start + row])
                kept = order[head, row, :count].tolist()
                dropped = order[head, row, count:].tolist()
                assert kept == torch.nonzero(keep[head, row]).flatten().tolist()
                assert dropped == torch.nonzero(~keep[head, row]).flatten().tolist()


def test_account_of_a_call() -> None:
    layout = plan_blocks([517, 63])
    mask = make_random_mask(layout, num_heads=2)
    account = account_flops(mask, num_heads=2, head_dim=32, num_tried=2)
    kept = 0
    for segment in layout.segments:
        queries = mask.keep_of(segment).repeat_interleave(128, 1)[:, : segment.num_tokens]
        kept += int(queries.repeat_interleave(KEY_BLOCK, 2)[..., : segment.num_tokens].sum())
    assert account.dense == 2 * 4 * 32 * (517**2 + 63**2)
    assert int(account.exact) == kept * 4 * 32
    assert int(account.stand_ins) == (2 * (517**2 + 63**2) - kept) * 4 * 32 // CELL
    scoring, slope = 4 * 32 * (33**2 + 4**2), 4 * 32**2 * 580
    sampled = 34 * (517 + 33) + 9 * (63 + 4)
    assert account.beside == 2 * (scoring + slope + sampled * 32 * (4 + 2 * 2))
    assert account.total == int(account.exact + account.stand_ins) + account.beside
    everything = account_flops(mask_all(layout), num_heads=2, head_dim=32, num_tried=1)
    assert everything.total - everything.beside == everything.dense


@pytest.mark.parametrize(
    "wrong",
    [{"max_share": 0.0}, {"max_share": 1.1}, {"max_share": 0.5, "reach": -1}, {"max_share": 1, "count_step": 0}],
)
def test_recipes_that_say_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_share"):
        MaskRecipe(**wrong)  # type: ignore[arg-type]
