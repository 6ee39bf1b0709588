"""Span pooling against float64, and its codes against the store's codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lodestream.errors import DocumentError
from lodestream.kernels.span_pool.api import pool_spans, quantise_rows
from lodestream.storage.codec import encode_rows


def make_states(num_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_tokens", [1, 63, 127, 517])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_those_of_the_float64_mean(num_tokens: int, dtype: torch.dtype) -> None:
    states = make_states(num_tokens).to(dtype)
    starts = torch.tensor([0, num_tokens // 3, num_tokens - 1])
    ends = torch.tensor([num_tokens, num_tokens // 3 + 1, num_tokens])
    pooled = pool_spans(states, starts, ends)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        mean = states[start:end].double().mean(0)
        norm = float(mean.norm())
        assert float(pooled.norms[row]) == pytest.approx(norm, rel=2**-10)
        decoded = pooled.codes[row].double() * float(pooled.scales[row])
        # Half a step of the codes, and what float32 sums of the span may add.
        assert float((decoded - mean / norm).abs().max()) <= float(pooled.scales[row]) * (0.5 + 1e-4 * num_tokens)


def test_neighbours_do_not_matter() -> None:
    states = make_states(300)
    alone = pool_spans(states[100:140], torch.tensor([0]), torch.tensor([40]))
    together = pool_spans(states, torch.tensor([0, 100, 140]), torch.tensor([100, 140, 300]))
    apart = pool_spans(states, torch.tensor([250, 100]), torch.tensor([260, 140]))
    for pooled in (together, apart):
        assert torch.equal(pooled.codes[1], alone.codes[0])
        assert pooled.scales[1] == alone.scales[0]


def test_codes_are_those_of_the_codec() -> None:
    rows = make_states(2000, seed=3) * torch.logspace(-3, 3, 2000)[:, None]
    rows[7] = 0
    rows[8] = 1e-30
    pooled = quantise_rows(rows)
    codes, scales, norms = encode_rows(rows.numpy())
    np.testing.assert_array_equal(pooled.scales.numpy(), scales)
    np.testing.assert_allclose(pooled.norms.numpy(), norms, rtol=2**-10)
    # The length of a row may differ in its last bit between the two, and a code at a tie with it.
    differences = np.abs(pooled.codes.numpy().astype(int) - codes.astype(int))
    assert differences.max() <= 1
    assert (differences > 0).mean() < 1e-3
    assert not codes[7:9].any()
    assert not pooled.codes[7:9].any()
    assert not pooled.scales[7:9].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_states_that_are_no_numbers_are_refused(value: float) -> None:
    states = make_states(4)
    states[2, 3] = value
    with pytest.raises(DocumentError):
        pool_spans(states, torch.tensor([0]), torch.tensor([4]))


@pytest.mark.parametrize(("start", "end"), [(2, 2), (-1, 2), (0, 9)])
def test_spans_outside_the_states_are_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="token"):
        pool_spans(make_states(8), torch.tensor([start]), torch.tensor([end]))


def test_no_spans() -> None:
    assert pool_spans(
        make_states(8), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    ).codes.shape == (0, 24)
