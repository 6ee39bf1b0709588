"""Cells: training is deterministic and every row has the nearest; recall on vectors that lie in groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.storage.catalog import Catalog
from lodestream.storage.codec import encode_rows
from lodestream.storage.search import index as index_module
from lodestream.storage.search.blocks import Rows, seal
from lodestream.storage.search.cells import RowsByCell, count_cells, train
from lodestream.storage.search.index import Filters, VectorIndex, _Names
from lodestream.storage.search.recall import MAX_SHARE, tune

DIM = 32
NUM_ROWS = 6000


def make_index(*, spread: float) -> VectorIndex:
    """One paragraph for each of NUM_ROWS documents; vectors about 60 centres."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(60, DIM))
    vectors = centres[rng.integers(60, size=NUM_ROWS)] + rng.normal(size=(NUM_ROWS, DIM)) * spread
    numbers = np.arange(NUM_ROWS, dtype=np.int32)
    zeros = np.zeros(NUM_ROWS, np.int32)
    rows = Rows(
        docs=numbers,
        ordinals=zeros,
        starts=zeros,
        ends=zeros,
        densities=np.linspace(0, 1, NUM_ROWS).astype(np.float16),
        kinds=np.zeros(NUM_ROWS, np.uint8),
        cells=np.zeros(NUM_ROWS, np.uint16),
    )
    names = _Names().extended(pa.array([f"{number}.md" for number in numbers.tolist()]))
    blocks = {"paragraph": seal(encode_rows(vectors.astype(np.float32))[0], rows)}
    catalog = Catalog.__new__(Catalog)  # only an update asks it
    return VectorIndex(catalog, names, numbers, np.ones(NUM_ROWS, np.bool_), blocks)


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> VectorIndex:
    monkeypatch.setattr(index_module, "_ROWS_A_HIT", 8)  # a cell has eighty rows here
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    index = make_index(spread=0.5)
    return index.divide("paragraph", index.train("paragraph"))


def test_training_is_deterministic_and_rows_are_in_the_nearest_cell(divided: VectorIndex) -> None:
    centroids = divided.centroids["paragraph"]
    assert np.array_equal(make_index(spread=0.5).train("paragraph").vectors, centroids.vectors)
    assert len(centroids) == count_cells(NUM_ROWS)
    for block in divided._blocks["paragraph"]:
        dots = block.take_codes(slice(None)).astype(np.float32) @ centroids.vectors.T
        chosen = dots[np.arange(len(block)), block.rows.cells]
        assert np.allclose(chosen, dots.max(axis=1), rtol=1e-5)


def test_scores_are_the_exact_ones_and_recall_is_what_was_measured(divided: VectorIndex) -> None:
    filters = Filters()
    recall = tune(divided, "paragraph", num_rows=40, queries=[], least=0.95, seed=1)
    assert recall.worst >= 0.95
    assert recall.num_cells <= len(divided.centroids["paragraph"]) // MAX_SHARE
    assert (recall.num_rows, recall.num_queries, recall.of_queries) == (40, 0, None)
    shares = []
    codes, _ = divided.sample("paragraph", 60, seed=99)
    for query in codes.astype(np.float32):
        exact = {span.doc_id: span.score for span in divided.search(query, limit=10, filters=filters)}
        found, is_exact = divided.search_cells(query, limit=10, filters=filters, num_cells=recall.num_cells)
        assert not is_exact
        assert all(exact.get(span.doc_id, span.score) == span.score for span in found)
        assert [span.score for span in found] == sorted((span.score for span in found), reverse=True)
        shares.append(len(exact.keys() & {span.doc_id for span in found}) / 10)
    assert np.mean(shares) >= 0.9


def test_more_cells_are_tried_while_recall_is_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_ROWS_A_HIT", 1)
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    index = make_index(spread=20.0)  # no groups at all
    index = index.divide("paragraph", index.train("paragraph"))
    query = np.random.default_rng(0).normal(size=DIM).astype(np.float32)
    recall = tune(index, "paragraph", num_rows=20, queries=[query] * 3, least=0.95, seed=1)
    assert recall.num_cells == len(index.centroids["paragraph"]) // MAX_SHARE
    assert recall.worst < 0.95
    assert recall.num_queries == 3 and recall.of_queries is not None
    assert tune(index, "paragraph", num_rows=20, queries=[], least=0.0, seed=1).num_cells < recall.num_cells


def test_a_filter_that_leaves_little_makes_the_search_exact(divided: VectorIndex) -> None:
    query = np.random.default_rng(0).normal(size=DIM).astype(np.float32)
    filters = Filters(min_density=0.99)
    found, is_exact = divided.search_cells(query, limit=10, filters=filters, num_cells=2)
    assert is_exact
    assert found == divided.search(query, limit=10, filters=filters)


@given(
    cells=st.lists(st.integers(0, 9), max_size=60),
    wanted=st.lists(st.integers(0, 12), max_size=8, unique=True),
)
def test_rows_by_cell(cells: list[int], wanted: list[int]) -> None:
    found = RowsByCell(np.array(cells, np.uint16)).take(np.array(wanted, np.int64))
    assert sorted(found.tolist()) == [row for row, cell in enumerate(cells) if cell in wanted]


def test_the_same_sample_gives_the_same_centroids() -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    codes = np.random.default_rng(0).integers(-127, 128, (500, DIM)).astype(np.int8)
    codes[7] = 0
    first, second = (train(codes, num_cells=12, since=1) for _ in range(2))
    assert np.array_equal(first.vectors, second.vectors)
    assert np.allclose(np.linalg.norm(first.vectors, axis=1), 1, atol=1e-5)
