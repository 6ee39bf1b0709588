"""The index of a snapshot finds what a scan of it finds, after any history of publishes; it reads what changed only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lodestream.pipeline.search import search_snapshot
from lodestream.pipeline.serve.index_searcher import IndexSearcher
from lodestream.storage.catalog import Catalog
from lodestream.storage.reader import Snapshot
from lodestream.storage.search import building
from lodestream.storage.search import index as index_module
from lodestream.storage.search.index import Filters, VectorIndex
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import DIM, begin, make_documents, make_features, make_states

IDS = [f"{source}/{number}.md" for source in ("x", "y") for number in range(6)]


class History:
    """A store whose documents are written and deleted; some of their sentences are the same, some are headings."""

    def __init__(self, folder: Path) -> None:
        self.store = FeatureStore.open_or_create(folder / "store", dim=DIM)
        self.known: set[str] = set()
        self.runs = 0

    def publish(self, changes: dict[str, int | None]) -> Snapshot:
        self.runs += 1
        run_id = f"run {self.runs}"
        written = {
            doc_id: ["boilerplate", *(f"{doc_id} {self.runs % 3} {number}" for number in range(count))]
            for doc_id, count in changes.items()
            if count is not None
        }
        deleted = [doc_id for doc_id, count in changes.items() if count is None and doc_id in self.known]
        features = make_features(written, run_id=run_id)
        place = features.schema.get_field_index("kind")
        kinds = ["heading" if number % 5 == 0 else "text" for number in range(features.num_rows)]
        transaction = begin(self.store, run_id=run_id)
        transaction.write_chunk(
            features=features.set_column(place, features.schema.field(place), pa.array(kinds, pa.string())),
            documents=make_documents(written, run_id=run_id),
            deleted_doc_ids=deleted,
            source_state=make_states(written, run_id=run_id),
        )
        transaction.publish(checkpoint={}, run={})
        self.known = (self.known | written.keys()) - set(deleted)
        return self.store.open_snapshot()


def ask(snapshot: Snapshot, index: VectorIndex, **wanted: Any) -> tuple[list[Any], list[Any]]:
    """(from a scan, from the index): document, place, score."""
    query = np.random.default_rng(wanted.pop("seed")).normal(size=DIM).astype(np.float32)
    query /= np.linalg.norm(query)
    limit = wanted.pop("limit")
    scanned = search_snapshot(snapshot, query, limit=limit, **wanted)
    found = index.search(query, limit=limit, filters=Filters(**wanted))
    return (
        [(hit.doc_id, hit.ordinal, hit.kind, hit.char_start, hit.char_end, hit.score) for hit in scanned],
        [(hit.doc_id, hit.ordinal, hit.kind, hit.char_start, hit.char_end, round(hit.score, 4)) for hit in found],
    )


changes_of_documents = st.dictionaries(st.sampled_from(IDS), st.one_of(st.none(), st.integers(0, 4)), max_size=6)


@settings(
    max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow]
)
@given(
    steps=st.lists(changes_of_documents, min_size=1, max_size=4),
    loose=st.sampled_from([4, 1000]),
    again=st.sampled_from([0.1, 10.0]),
    seed=st.integers(0, 1000),
)
def test_after_any_history_the_index_finds_what_a_scan_finds(
    steps: list[dict[str, int | None]],
    loose: int,
    again: float,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    history = History(tmp_path_factory.mktemp("history"))
    snapshot = history.publish(dict.fromkeys(IDS[::2], 2))
    index = VectorIndex.load(snapshot, Catalog.read(snapshot))
    kept = [(snapshot, index)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "MAX_LOOSE_ROWS", loose)
        patch.setattr(building, "MAX_LOOSE_ROWS", loose)
        patch.setattr(index_module, "_READ_AGAIN_SHARE", again)
        for changes in steps:
            snapshot = history.publish({IDS[0]: 1, **changes})
            index = index.advance(snapshot, Catalog.read(snapshot))
            kept.append((snapshot, index))
    for number, (snapshot, index) in enumerate(kept):
        for granularity in ("sentence", "document"):
            for wanted in (
                {},
                {"headings": True},
                {"min_density": 0.5},
                {"doc_prefix": "y/"},
                {"doc_prefix": "none/", "headings": True},
            ):
                for limit in (3, 1000):
                    scanned, found = ask(
                        snapshot, index, seed=seed + number, limit=limit, granularity=granularity, **wanted
                    )
                    assert found == scanned


def test_an_update_reads_the_changed_documents_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path)
    first = history.publish(dict.fromkeys(IDS, 3))
    index = VectorIndex.load(first, Catalog.read(first))
    second = history.publish({IDS[3]: 2, IDS[4]: None})
    read: list[Any] = []
    plain = Snapshot.scan_features

    def scan(self: Snapshot, columns: Any, **chosen: Any) -> Any:
        read.append(chosen.get("doc_ids"))
        return plain(self, columns, **chosen)

    monkeypatch.setattr(Snapshot, "scan_features", scan)
    after = index.advance(second, Catalog.read(second))
    assert read == [[IDS[3]]]
    assert after.num_rows <= index.num_rows + 4
    assert after.nbytes > 0


def test_the_searcher_follows_publishes_and_lets_go(tmp_path: Path) -> None:
    history = History(tmp_path)
    first = history.publish(dict.fromkeys(IDS, 3))
    searcher = IndexSearcher(Catalog.read, max_bytes=1 << 20)
    searcher.prepare(first, before=None)
    second = history.publish({IDS[3]: 2, IDS[4]: None})
    searcher.prepare(second, before=first)
    query = np.eye(DIM, dtype=np.float32)[0]
    wanted: Any = {"limit": 5, "granularity": "sentence", "min_density": None, "headings": True, "doc_prefix": None}
    asked = wanted | {"exact": False}
    assert searcher.search(first, query, **asked).hits == search_snapshot(first, query, **wanted)
    assert searcher.search(second, query, **asked).hits == search_snapshot(second, query, **wanted)
    searcher.release(first)
    assert searcher.search(first, query, **asked).hits == search_snapshot(first, query, **wanted)
    assert searcher.count() == {"index": 2, "approximate": 0, "scan": 1} | {
        name: number for name, number in searcher.count().items() if (number > 0) == (name in ("rows", "bytes"))
    }


def test_titles_and_texts_in_memory_are_those_of_the_snapshot(tmp_path: Path) -> None:
    history = History(tmp_path)
    searcher = IndexSearcher(Catalog.read, max_bytes=1 << 20, text_bytes=1 << 20)
    query = np.eye(DIM, dtype=np.float32)[0]
    wanted: Any = {"limit": 100, "granularity": "sentence", "min_density": None, "headings": True, "doc_prefix": None}
    before: Snapshot | None = None
    for changes in (dict.fromkeys(IDS, 3), {IDS[3]: 3, IDS[4]: None}, {IDS[3]: 3, IDS[4]: 3}, dict.fromkeys(IDS, 3)):
        snapshot = history.publish(changes)  # texts of the same lengths at the same places
        searcher.prepare(snapshot, before=before)
        for asked in (before, snapshot, before, snapshot):
            if asked is not None:
                assert searcher.search(asked, query, exact=False, **wanted).hits == search_snapshot(
                    asked, query, **wanted
                )
        if before is not None:
            searcher.release(before)
        before = snapshot
    assert searcher.count()["text_bytes"] > 0


def test_an_index_that_would_take_too_much_is_not_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(tmp_path)
    snapshot = history.publish(dict.fromkeys(IDS, 3))
    searcher = IndexSearcher(Catalog.read, max_bytes=100)
    searcher.prepare(snapshot, before=None)
    query = np.eye(DIM, dtype=np.float32)[0]
    wanted: Any = {"limit": 5, "granularity": "sentence", "min_density": None, "headings": True, "doc_prefix": None}
    asked = wanted | {"exact": False}
    assert searcher.search(snapshot, query, **asked).hits == search_snapshot(snapshot, query, **wanted)
    assert searcher.count()["scan"] == 1
    assert "serve.index_bytes" in caplog.text


# ---- approximate -----------------------------------------------------------------------------------------------------

SENTENCES: dict[str, Any] = {"granularity": "sentence", "min_density": None, "headings": True, "doc_prefix": None}


def ready(history: History, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Snapshot, IndexSearcher]:
    """A snapshot of 60 sentences and a searcher whose cells are ready; one cell may be looked into."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    monkeypatch.setattr(index_module, "_ROWS_A_HIT", 1)
    snapshot = history.publish(dict.fromkeys(IDS, 4))
    options = {"approximate_above": 20, "min_recall": 0.0} | options
    searcher = IndexSearcher(Catalog.read, max_bytes=1 << 20, **options)
    searcher.prepare(snapshot, before=None)
    assert searcher.wait(60)
    return snapshot, searcher


@settings(
    max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow]
)
@given(steps=st.lists(changes_of_documents, min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_cells_hold_live_rows_that_match_after_any_history(
    steps: list[dict[str, int | None]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = History(tmp_path_factory.mktemp("history"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_READ_AGAIN_SHARE", 10.0)
        snapshot, searcher = ready(history, patch)
        kept = [snapshot]
        for changes in steps:
            kept.append(history.publish({IDS[0]: 1, **changes}))
            searcher.prepare(kept[-1], before=kept[-2])
            assert searcher.wait(60)
        for snapshot in kept:
            index = searcher._find(snapshot)
            assert index is not None
            query = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
            for change in (
                {},
                {"headings": False},
                {"min_density": 0.5},
                {"doc_prefix": "y/"},
                {"doc_prefix": "none/"},
            ):
                wanted = SENTENCES | change
                every = {
                    (hit.doc_id, hit.ordinal): hit.score
                    for hit in search_snapshot(snapshot, query, limit=1000, **wanted)
                }
                for num_cells in (1, 2, 1000):
                    found, is_exact = index.search_cells(query, limit=3, filters=Filters(**wanted), num_cells=num_cells)
                    names = {(span.doc_id, span.ordinal): round(span.score, 4) for span in found}
                    assert len(names) == len(found) == min(3, len(every))
                    assert names.items() <= every.items()
                    if is_exact:
                        assert list(names.items()) == list(every.items())[:3]
                assert is_exact  # of all cells


def test_an_approximate_search_says_so_and_an_exact_one_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, searcher = ready(History(tmp_path), monkeypatch)
    query = np.eye(DIM, dtype=np.float32)[0]
    near = searcher.search(snapshot, query, limit=2, exact=False, **SENTENCES)
    exact = searcher.search(snapshot, query, limit=2, exact=True, **SENTENCES)
    assert (near.is_exact, exact.is_exact) == (False, True)
    assert exact.hits == search_snapshot(snapshot, query, limit=2, **SENTENCES)
    told = searcher.describe_recall()
    assert list(told) == ["sentence"]  # there are too few of the others
    assert told["sentence"]["approximate"] and told["sentence"]["cells_searched"] == 1
    assert 0 < told["sentence"]["recall"] < 1  # one cell in eight of points in all directions
    assert {name: searcher.count()[name] for name in ("index", "approximate")} == {"index": 1, "approximate": 1}
    searcher.close()


def test_too_low_a_recall_makes_search_exact_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, searcher = ready(History(tmp_path), monkeypatch, min_recall=1.0)
    assert searcher.search(snapshot, np.eye(DIM, dtype=np.float32)[0], limit=2, exact=False, **SENTENCES).is_exact
    told = searcher.describe_recall()["sentence"]
    assert not told["approximate"]
    assert "less than serve.min_recall = 1" in told["reason"]


@pytest.mark.parametrize("above", [0, 1000])
def test_a_small_store_is_searched_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    snapshot, searcher = ready(History(tmp_path), monkeypatch, approximate_above=above)
    assert searcher.describe_recall() == {}
    assert searcher._find(snapshot).centroids == {}  # type: ignore[union-attr]
    assert searcher.search(snapshot, np.eye(DIM, dtype=np.float32)[0], limit=2, exact=False, **SENTENCES).is_exact


def test_a_publish_keeps_the_cells_until_half_of_the_rows_came_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_READ_AGAIN_SHARE", 10.0)
    history = History(tmp_path)
    first, searcher = ready(history, monkeypatch)
    centroids = searcher._find(first).centroids["sentence"]  # type: ignore[union-attr]
    second = history.publish({IDS[0]: 1, IDS[1]: 3, IDS[2]: None})
    searcher.prepare(second, before=first)
    assert searcher.wait(60)
    assert searcher._find(second).centroids["sentence"] is centroids  # type: ignore[union-attr]
    third = history.publish(dict.fromkeys(IDS[:9], 4))
    searcher.prepare(third, before=second)
    assert searcher.wait(60)
    assert searcher._find(third).centroids["sentence"] is not centroids  # type: ignore[union-attr]
    assert searcher._find(second).centroids["sentence"] is centroids  # type: ignore[union-attr]
    assert searcher.describe_recall()["sentence"]["approximate"]


def test_what_fails_in_the_background_leaves_search_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: VectorIndex, granularity: str) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(VectorIndex, "train", fail)
    snapshot, searcher = ready(History(tmp_path), monkeypatch)
    assert searcher.search(snapshot, np.eye(DIM, dtype=np.float32)[0], limit=2, exact=False, **SENTENCES).is_exact
    assert "no room" in searcher.describe_recall()["sentence"]["reason"]
    assert "cannot be made" in caplog.text
