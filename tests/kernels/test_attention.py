"""Block-sparse attention against float64, against torch's own attention over keys and means, and against itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lodestream.kernels.attention import cpu, reference
from lodestream.kernels.attention.api import Attended, attend
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import correct_rows, count_samples, sample_tokens
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.layout import (
    CELL,
    CELLS_PER_BLOCK,
    KEY_BLOCK,
    BlockMask,
    make_mask,
    mask_all,
    mask_window,
    plan_blocks,
)
from lodestream.kernels.gpu_check.attention_oracle import (
    ODD_LENGTHS,
    attend_in_float64,
    make_cells,
    make_inputs,
    make_random_mask,
)

FORMS = ["reference", "cpu"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(
    form: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, compensation: str = "slope"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Result and log-sum-exp of one form; "cpu" is what the api takes here."""
    cells = make_cells(k, v, mask, compensation)
    if form == "reference":
        cells = None if mask.window is not None else cells
        return reference.attend_blocks(q, k, v, mask, cells, scale=q.shape[2] ** -0.5)
    result = attend(q, k, v, mask, cells, with_lse=True)
    assert result.lse_TH is not None
    return result.out_THD, result.lse_TH


def attend_and_correct(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, *, step: int = 32
) -> Attended:
    return attend(q, k, v, mask, summarise_cells(k, v, mask.layout), correction_step=step)


def take_segment(mask: BlockMask, number: int) -> BlockMask:
    """The mask of one segment alone."""
    segment = mask.layout.segments[number]
    return make_mask(plan_blocks([segment.num_tokens]), mask.keep_HP[:, segment.pairs], window=mask.window)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compensation", ["none", "means", "slope"])
@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("form", FORMS)
def test_results_are_those_of_float64(
    form: str, head_dim: int, dtype: torch.dtype, compensation: str, query_block: int
) -> None:
    layout = plan_blocks(ODD_LENGTHS, query_block=query_block)
    q, k, v = make_inputs(layout.num_tokens, head_dim, dtype=dtype)
    mask = make_random_mask(layout, num_heads=2)
    out, lse = run(form, q, k, v, mask, compensation)
    expected = attend_in_float64(q, k, v, mask, compensation=compensation, rounds_logits=form == "cpu")
    assert float((out.double() - expected.out_THD).abs().max()) <= expected.out_budget
    assert float((lse.double() - expected.lse_TH).abs().max()) <= expected.lse_budget


@pytest.mark.parametrize("scores_at_once", [1, 100_000, 1 << 20])
@pytest.mark.parametrize("num_mask_heads", [1, 2])
def test_rows_in_groups_of_any_size_give_the_result_of_float64(
    scores_at_once: int, num_mask_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_SCORES_AT_ONCE", scores_at_once)
    layout = plan_blocks([1990])
    q, k, v = make_inputs(layout.num_tokens, 32)
    mask = make_random_mask(layout, num_heads=num_mask_heads, share=0.2)
    counts = mask.counts_HR[0].tolist()
    assert len(set(counts)) > 1 and max(map(counts.count, counts)) > 1
    out, lse = run("cpu", q, k, v, mask)
    expected = attend_in_float64(q, k, v, mask, rounds_logits=True)
    assert float((out.double() - expected.out_THD).abs().max()) <= expected.out_budget
    assert float((lse.double() - expected.lse_TH).abs().max()) <= expected.lse_budget


@pytest.mark.parametrize("form", FORMS)
def test_stand_ins_are_keys_of_their_own_to_torch(form: str) -> None:
    """torch's attention over [tokens, means] with a float mask knows nothing of blocks."""
    layout = plan_blocks([517])
    q, k, v = make_inputs(517, 64)
    mask = make_random_mask(layout, num_heads=2, seed=3)
    padding = -517 % CELL
    counts = torch.full((-(-517 // CELL),), float(CELL))
    counts[-1] -= padding
    key_means, value_means = (
        F.pad(x, (0, 0, 0, 0, 0, padding)).unflatten(0, (-1, CELL)).sum(1) / counts[:, None, None] for x in (k, v)
    )
    keep = mask.keep_of(layout.segments[0]).repeat_interleave(layout.query_block, 1)[:, :517]
    tokens = torch.where(keep.repeat_interleave(KEY_BLOCK, 2)[..., :517], 0.0, -math.inf)
    cells = torch.where(keep.repeat_interleave(CELLS_PER_BLOCK, 2)[..., : len(counts)], -math.inf, counts.log())
    expected = F.scaled_dot_product_attention(
        q.transpose(0, 1),
        torch.cat([k, key_means]).transpose(0, 1),
        torch.cat([v, value_means]).transpose(0, 1),
        attn_mask=torch.cat([tokens, cells], 2),
    )
    out, _ = run(form, q, k, v, mask, "means")
    torch.testing.assert_close(out, expected.transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", ODD_LENGTHS)
def test_everything_kept_is_dense_attention(dtype: torch.dtype, num_tokens: int) -> None:
    q, k, v = make_inputs(num_tokens, 32, dtype=dtype)
    result = attend_and_correct(q, k, v, mask_all(plan_blocks([num_tokens])), step=16)
    dense = F.scaled_dot_product_attention(*(x.transpose(0, 1).double() for x in (q, k, v))).transpose(0, 1)
    budget = attend_in_float64(q, k, v, mask_all(plan_blocks([num_tokens])), rounds_logits=True).out_budget
    assert float((result.out_THD.double() - dense).abs().max()) <= budget
    assert result.error is not None
    assert float(result.error.before_S.max()) <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 64])
def test_dense_form(head_dim: int, dtype: torch.dtype) -> None:
    layout = plan_blocks(ODD_LENGTHS)
    q, k, v = make_inputs(layout.num_tokens, head_dim, dtype=dtype)
    expected = attend_in_float64(q, k, v, mask_all(layout), rounds_logits=True)
    out = attend_dense(q, k, v, layout)
    assert float((out.double() - expected.out_THD).abs().max()) <= expected.out_budget


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_and_order_do_not_matter(dtype: torch.dtype) -> None:
    lengths = [517, 1, 127, 300]
    layout = plan_blocks(lengths)
    q, k, v = make_inputs(layout.num_tokens, 32, dtype=dtype)
    mask = make_random_mask(layout, num_heads=2)
    together = attend_and_correct(q, k, v, mask)
    for number, segment in enumerate(layout.segments):
        own = [x[segment.tokens] for x in (q, k, v)]
        alone = attend_and_correct(*own, take_segment(mask, number))
        assert torch.equal(together.out_THD[segment.tokens], alone.out_THD)
        assert together.error is not None and alone.error is not None
        bounds = together.error.bounds
        assert torch.equal(together.error.after_S[bounds[number] : bounds[number + 1]], alone.error.after_S)
    order = [2, 0, 3, 1]
    tokens = torch.cat([torch.arange(s.token_start, s.token_start + s.num_tokens) for s in layout.segments])
    tokens = torch.cat([tokens[layout.segments[i].tokens] for i in order])
    pairs = torch.cat([mask.keep_HP[:, layout.segments[i].pairs] for i in order], 1)
    shuffled = attend_and_correct(
        q[tokens], k[tokens], v[tokens], make_mask(plan_blocks([lengths[i] for i in order]), pairs)
    )
    assert torch.equal(shuffled.out_THD, together.out_THD[tokens])


def test_what_others_hold_is_never_read() -> None:
    layout = plan_blocks([130, 200, 70])
    q, k, v = make_inputs(layout.num_tokens, 32)
    mask = make_random_mask(layout, num_heads=2)
    middle = layout.segments[1].tokens
    clean = attend_and_correct(q, k, v, mask, step=16).out_THD[middle]
    for x in (q, k, v):
        x[: middle.start] = math.nan
        x[middle.stop :] = math.nan
    assert torch.equal(attend_and_correct(q, k, v, mask, step=16).out_THD[middle], clean)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [2, 16, 128, 2000])
def test_window(form: str, window: int) -> None:
    layout = plan_blocks(ODD_LENGTHS)
    q, k, v = make_inputs(layout.num_tokens, 64)
    mask = mask_window(layout, window=window)
    expected = attend_in_float64(q, k, v, mask)
    out, lse = run(form, q, k, v, mask)
    assert float((out.double() - expected.out_THD).abs().max()) <= expected.out_budget
    assert float((lse.double() - expected.lse_TH).abs().max()) <= expected.lse_budget
    assert attend_and_correct(q, k, v, mask).error is None, "a window has nothing to correct"
    if window >= 2 * 517:
        dense, _ = run(form, q, k, v, mask_all(layout), "none")
        torch.testing.assert_close(dense, out, atol=1e-6, rtol=1e-5)


def test_window_keeps_no_block_that_it_does_not_touch() -> None:
    layout = plan_blocks([1000])
    keep = mask_window(layout, window=128).keep_of(layout.segments[0])[0]
    place = torch.arange(1000)
    touched = (place[:, None] - place[None, :]).abs() <= 64
    for row in range(keep.shape[0]):
        queries = slice(row * 128, (row + 1) * 128)
        for block in range(keep.shape[1]):
            keys = slice(block * KEY_BLOCK, (block + 1) * KEY_BLOCK)
            assert bool(keep[row, block]) == bool(touched[queries, keys].any())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("factor", [1e-4, 30.0])
def test_extreme_logits(form: str, factor: float) -> None:
    """Logits of some thousands leave one key; those near zero a plain mean."""
    layout = plan_blocks([300])
    q, k, v = make_inputs(300, 32)
    mask = make_random_mask(layout, num_heads=2)
    out, _ = run(form, q * factor, k * factor, v, mask, "means")
    expected = attend_in_float64(q * factor, k * factor, v, mask, compensation="means")
    assert bool(out.isfinite().all())
    assert float((out.double() - expected.out_THD).abs().max()) <= expected.out_budget


def test_large_float16_values_do_not_overflow_the_slope() -> None:
    _, k, _ = make_inputs(2000, 32, dtype=torch.float16)
    v = 200.0 * k.sign()
    cells = summarise_cells(k, v, plan_blocks([2000]))
    assert cells.slopes_NHDD is not None
    assert bool(cells.slopes_NHDD.isfinite().all())
    assert float(cells.slopes_NHDD.abs().max()) > 65504 / 2000


@pytest.mark.parametrize("step", [16, 32, 64])
@pytest.mark.parametrize("num_tokens", [*ODD_LENGTHS, 5, 512])
def test_sampled_tokens_are_exact_and_those_between_interpolated(step: int, num_tokens: int) -> None:
    layout = plan_blocks([num_tokens])
    q, k, v = make_inputs(num_tokens, 32)
    mask = make_mask(layout, torch.zeros(2, layout.num_pairs, dtype=torch.bool))
    sparse = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    corrected = sparse.clone()
    error = correct_rows(corrected, q, k, v, mask, step=step, scale=32**-0.5)
    dense = F.scaled_dot_product_attention(*(x.transpose(0, 1).double() for x in (q, k, v))).transpose(0, 1)
    sampled = sample_tokens(layout.segments[0], step).tolist()
    assert sampled == sorted({0, *(min(g + step // 2, num_tokens - 1) for g in range(0, num_tokens, step))})
    assert len(sampled) == count_samples(num_tokens, step)
    assert float((corrected[sampled].double() - dense[sampled]).abs().max()) < 1e-5
    deltas = dense - sparse
    for token in set(range(num_tokens)) - set(sampled):
        left = max(s for s in sampled if s < token)
        right = min((s for s in sampled if s > token), default=left)
        share = (token - left) / max(right - left, 1)
        expected = sparse[token] + 0.75 * ((1 - share) * deltas[left] + share * deltas[right])
        torch.testing.assert_close(corrected[token].double(), expected, atol=1e-5, rtol=1e-5)
    norms = (deltas[sampled].flatten(1).norm(dim=1) / dense[sampled].flatten(1).norm(dim=1)).float()
    torch.testing.assert_close(error.before_S, norms, atol=1e-5, rtol=1e-4)


def test_error_after_the_correction_is_that_without_a_sample_of_its_own() -> None:
    layout = plan_blocks([100])
    q, k, v = make_inputs(100, 32)
    mask = make_mask(layout, torch.zeros(2, layout.num_pairs, dtype=torch.bool))
    sparse = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    dense = attend(q, k, v, mask_all(layout)).out_THD
    error = correct_rows(sparse.clone(), q, k, v, mask, step=32, scale=32**-0.5)
    sampled = sample_tokens(layout.segments[0], 32)
    deltas = (dense - sparse)[sampled]
    for number, sides in enumerate([(1, 1), (0, 2), (1, 3), (2, 4), (3, 3)]):
        left = deltas[number] - 0.75 * (deltas[sides[0]] + deltas[sides[1]]) / 2
        expected = float(left.norm() / dense[sampled[number]].norm())
        assert float(error.after_S[number]) == pytest.approx(expected, abs=1e-4)


def test_error_is_summarised_by_segment() -> None:
    layout = plan_blocks([2000, 1, 600])
    q, k, v = make_inputs(layout.num_tokens, 32)
    result = attend_and_correct(q, k, v, make_random_mask(layout, num_heads=2, share=0.2), step=16)
    assert result.error is not None
    assert result.error.bounds == (0, 126, 127, 166)
    means, tails = result.error.summarise()
    first = result.error.after_S[:126]
    assert float(means[0]) == pytest.approx(float(first.mean()))
    assert int((first <= tails[0]).sum()) == 125
    assert float(means[1]) < 1e-6
    assert float(result.error.before_S.mean()) > 0


def test_each_ingredient_brings_the_result_closer() -> None:
    layout = plan_blocks([2000])
    q, k, v = make_inputs(2000, 32)
    # Neighbours that ask for nearly the same are what the correction lives on.
    q = q[::16].repeat_interleave(16, dim=0)[:2000] + 0.1 * q
    mask = make_random_mask(layout, num_heads=2, share=0.25)
    dense = attend(q, k, v, mask_all(layout)).out_THD
    results = [run("cpu", q, k, v, mask, compensation)[0] for compensation in ("none", "means", "slope")]
    results.append(attend_and_correct(q, k, v, mask, step=16).out_THD)
    errors = [float((result - dense).norm() / dense.norm()) for result in results]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[0]


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((9, 2, 32), torch.float32, "tokens"),
        ((10, 2, 40), torch.float32, "head dim"),
        ((10, 2, 32), torch.float64, "dtype"),
        ((10, 3, 32), torch.float32, "heads"),
        ((10, 64), torch.float32, "shape"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    mask = make_random_mask(plan_blocks([10]), num_heads=2)
    x = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        attend(x, x, x, mask)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_empty_segments_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        plan_blocks(lengths)


def test_products_have_few_shapes_and_little_filling() -> None:
    """oneDNN keeps a compiled kernel for each shape: with one for each length a run would take more and more memory."""
    sizes = range(1, 1 << 16)
    filled = [cpu.fill_size(size) for size in sizes]
    assert all(size <= fill <= size * 17 / 16 for size, fill in zip(sizes, filled, strict=True))
    assert len(set(filled)) <= 16 * 16
    assert all(fill % CELLS_PER_BLOCK == 0 for fill in filled[KEY_BLOCK - 1 :])
