"""Rows are the same in whatever pieces they are built: a large document's are built in many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lodestream.actors import features, leaf_encoder
from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions
from tests.support.workspace import short_topics

DIM = 8
BLOCK = 5
MANY_SENTENCES = "\n\n".join(short_topics(12).values())


def sum_whole(codes: NDArray[np.int8], factors: NDArray[np.float64], starts: NDArray[np.int32]) -> NDArray[np.float64]:
    """float64 [R, D]: what ``_sum_runs`` gives, all runs at once; the blocks are part of the rule."""
    sums = np.zeros((len(starts), codes.shape[1]))
    for leaf in range(0, len(codes), BLOCK):
        block = slice(leaf, leaf + BLOCK)
        cuts = np.concatenate([[leaf], starts[(starts > leaf) & (starts < leaf + BLOCK)]])
        runs = np.searchsorted(starts, cuts, side="right") - 1
        sums[runs] += np.add.reduceat(codes[block] * factors[block, None], cuts - leaf, axis=0)
    return sums


@settings(max_examples=300, deadline=None)
@given(sizes=st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=30), seed=st.integers(0, 2**32 - 1))
def test_runs_are_summed_as_if_all_at_once(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    codes = random.integers(-127, 128, (sum(sizes), DIM), np.int8)
    factors = random.random(sum(sizes)) * 10.0 ** random.integers(-6, 3, sum(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_BLOCK_LEAVES", BLOCK)
        found = list(features._sum_runs(codes, factors, starts))
    assert [first for first, _ in found] == np.cumsum([0, *(len(sums) for _, sums in found)])[:-1].tolist()
    assert max(len(sums) for _, sums in found) <= BLOCK
    np.testing.assert_array_equal(np.concatenate([sums for _, sums in found]), sum_whole(codes, factors, starts))


def test_vectors_of_runs_do_not_depend_on_what_is_combined_with_them() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 4, 9000)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    num_leaves = int(sizes.sum())
    leaves = LeafVectors(
        codes=random.integers(-127, 128, (num_leaves, 384), np.int8),
        scales=np.full(num_leaves, 0.001, np.float16),
        norms=random.random(num_leaves).astype(np.float16),
        computed_at_us=np.arange(num_leaves),
    )
    weights = random.integers(1, 40, num_leaves)
    whole = features._combine(leaves, weights, starts)
    for run in (0, 1, 2047, 4095, 8999):
        rows = slice(int(starts[run]), int(starts[run] + sizes[run]))
        alone = features._combine(leaves.rows(rows.start, rows.stop), weights[rows], np.zeros(1, np.int32))
        for name, values in alone.items():
            np.testing.assert_array_equal(values[0], whole[name][run], err_msg=f"{name} of run {run}")


@pytest.mark.parametrize("base_below", [0.0, 0.5, 1.0])
def test_a_document_in_pieces_has_the_rows_of_the_whole(base_below: float, monkeypatch: pytest.MonkeyPatch) -> None:
    featurizer = Featurizer(FeaturizerOptions(base_below=base_below))
    whole = featurizer.featurize(MANY_SENTENCES)
    monkeypatch.setattr(features, "_PIECE_ROWS", 7)
    monkeypatch.setattr(leaf_encoder, "GROUP_TOKENS", 300)
    pieces = featurizer.featurize(MANY_SENTENCES)
    assert whole.column("key").num_chunks == 1 and pieces.column("key").num_chunks > 10
    assert max(len(chunk) for chunk in pieces.column("key").chunks) <= 2 * 7
    assert pieces.drop_columns(["computed_at"]).equals(whole.drop_columns(["computed_at"]))
