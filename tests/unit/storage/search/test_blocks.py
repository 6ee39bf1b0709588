"""Blocks find exactly what looking at every row finds, with faiss and without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.storage.codec import encode_rows
from lodestream.storage.search import blocks
from lodestream.storage.search.blocks import Block, Rows, bound_lengths, classify_lengths, seal
from lodestream.storage.search.scores import Query, find_best, score_rows


def make_codes(num_rows: int, dim: int, seed: int, *, copies: float = 0.2) -> np.ndarray:
    """Codes of rows about a few centres, some of them equal to others, some of zeros."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dim))
    vectors = centres[rng.integers(5, size=num_rows)] + rng.normal(size=(num_rows, dim)) * rng.random((num_rows, 1))
    vectors[rng.random(num_rows) < copies] = vectors[0] if num_rows else 0
    vectors[rng.random(num_rows) < 0.02] = 0
    return encode_rows(vectors.astype(np.float32))[0]


def make_rows(num_rows: int) -> Rows:
    numbers = np.arange(num_rows, dtype=np.int32)
    return Rows(
        docs=numbers,
        ordinals=numbers,
        starts=numbers,
        ends=numbers,
        densities=np.zeros(num_rows, np.float16),
        kinds=np.zeros(num_rows, np.uint8),
        cells=np.zeros(num_rows, np.uint16),
    )


def expected(codes: np.ndarray, query: Query, limit: int, wanted: np.ndarray | None) -> list[tuple[int, float]]:
    """By looking at every row, in float64."""
    scores = score_rows(codes, query)
    rows = [row for row in range(len(codes)) if wanted is None or wanted[row]]
    least = sorted((scores[row] for row in rows), reverse=True)[:limit]
    return [(row, scores[row]) for row in rows if least and scores[row] >= least[-1]]


@pytest.mark.parametrize("with_faiss", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    dim=st.sampled_from([8, 16, 20, 384]),
    num_rows=st.integers(1, 1500),
    limit=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([None, 0.02, 0.5, 0.95]),
)
def test_what_is_found_is_what_looking_at_every_row_finds(
    with_faiss: bool, dim: int, num_rows: int, limit: int, seed: int, share: float | None
) -> None:
    if with_faiss:
        pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    rng = np.random.default_rng(seed)
    codes = make_codes(num_rows, dim, seed)
    wanted = None if share is None else rng.random(num_rows) < share
    near = codes[rng.integers(num_rows)].astype(np.float32)
    query = Query.of(near + rng.normal(size=dim).astype(np.float32) * rng.choice([0.1, 30, 300]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MIN_FAISS_ROWS", 32)
        patch.setattr(blocks, "has_faiss", lambda: with_faiss)
        whole = [Block(codes, make_rows(num_rows))]
        for parts in (whole, seal(codes, make_rows(num_rows))):
            found = []
            for block in parts:
                mask = None if wanted is None else wanted[block.rows.docs]
                rows, scores = block.find(query, limit, mask, floor=-np.inf)
                found += list(zip(block.rows.docs[rows].tolist(), scores.tolist(), strict=True))
            best = expected(codes, query, limit, wanted)
            least = min((score for _, score in best), default=np.inf)
            assert sorted(item for item in found if item[1] >= least) == sorted(best)


def test_faiss_is_asked_and_seldom_looks_at_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    codes = make_codes(20_000, 384, 1, copies=0)
    parts = seal(codes, make_rows(len(codes)))
    scanned: list[int] = []
    plain = Block._scan
    monkeypatch.setattr(
        Block,
        "_scan",
        lambda self, *args: scanned.append(len(self)) or plain(self, *args),  # type: ignore[func-returns-value]
    )
    query = Query.of(codes[5].astype(np.float32))
    floor = -np.inf
    for block in parts:
        _, scores = block.find(query, 10, None, floor=floor)
        floor = max(floor, np.sort(scores)[-10] if len(scores) >= 10 else -np.inf)
    assert sum(scanned) < len(codes) / 4


@given(seed=st.integers(0, 1000), dim=st.sampled_from([1, 8, 65, 384]))
def test_equal_rows_have_equal_scores_wherever_they_stand(seed: int, dim: int) -> None:
    codes = make_codes(67, dim, seed, copies=0.5)
    query = Query.of(np.random.default_rng(seed).normal(size=dim).astype(np.float32))
    scores = score_rows(codes, query)
    for row in range(len(codes)):
        assert score_rows(codes[row : row + 1], query)[0] == scores[row]
        assert score_rows(np.repeat(codes[row : row + 1], 3, axis=0), query).tolist() == [scores[row]] * 3


@given(seed=st.integers(0, 1000), limit=st.integers(1, 300), floor=st.sampled_from([-np.inf, 0.0, 0.5]))
def test_the_best_of_a_batch_with_all_ties(seed: int, limit: int, floor: float) -> None:
    codes = make_codes(200, 16, seed, copies=0.6)
    query = Query.of(np.random.default_rng(seed).normal(size=16).astype(np.float32))
    rows, scores = find_best(codes, query, limit, floor=floor)
    found = sorted(zip(rows.tolist(), scores.tolist(), strict=True))
    assert found == [item for item in expected(codes, query, limit, None) if item[1] >= floor]


@given(seed=st.integers(0, 1000))
def test_lengths_are_within_their_class(seed: int) -> None:
    codes = make_codes(100, 64, seed)
    for length, length_class in zip(np.linalg.norm(codes.astype(float), axis=1), classify_lengths(codes), strict=True):
        low, high = bound_lengths(int(length_class))
        assert low <= max(length, 1.0) <= high


def test_a_query_is_its_codes_within_its_error() -> None:
    vector = np.random.default_rng(0).normal(size=384).astype(np.float32)
    query = Query.of(vector * 7)
    assert np.abs(query.codes).max() == 127
    assert np.linalg.norm(query.vector - query.codes * query.step) <= query.error
    exact = Query.of(encode_rows(vector[None, :])[0][0].astype(np.float32))
    assert exact.error < 1e-6
