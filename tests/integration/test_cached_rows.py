"""Rows through the cache are those of the pinned snapshot, whatever was published, and a publish keeps what is true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.cached_rows import CachedRows
from lodestream.pipeline.serve.stored_rows import read_documents
from lodestream.schema import GRANULARITIES, Granularity
from lodestream.storage.cache.compact_rows import PageCodec
from lodestream.storage.cache.layered import CacheOptions
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.store_rows import DIM, begin, make_documents, make_features, make_states

IDS = ["a.md", "b.md", "c.md", "d.md"]
BUDGETS = {"sentence": 1 << 20, "document": 1 << 20}


def make_keeper(folder: Path, *, memory: dict[str, int] = BUDGETS, codec: PageCodec = "int8") -> CacheKeeper:
    return CacheKeeper(CacheOptions(memory_bytes=memory, folder=folder, disk_bytes=1 << 20, codec=codec, max_age_s=1e6))


class History:
    """A store whose documents are edited and published."""

    def __init__(self, folder: Path) -> None:
        self.store = FeatureStore.open_or_create(folder / "store", dim=DIM)
        self.contents: dict[str, list[str]] = {}
        self.runs = 0

    def publish(self, changes: dict[str, int | None]) -> Snapshot:
        """Documents get new sentences (their number), or vanish (None)."""
        self.runs += 1
        run_id = f"run {self.runs}"
        written = {
            doc_id: [f"{doc_id} {self.runs} {number}" for number in range(count)]
            for doc_id, count in changes.items()
            if count is not None
        }
        deleted = [doc_id for doc_id, count in changes.items() if count is None and doc_id in self.contents]
        transaction = begin(self.store, run_id=run_id)
        transaction.write_chunk(
            features=make_features(written, run_id=run_id),
            documents=make_documents(written, run_id=run_id),
            deleted_doc_ids=deleted,
            source_state=make_states(written, run_id=run_id),
        )
        transaction.publish(checkpoint={}, run={})
        self.contents = {k: v for k, v in (self.contents | written).items() if k not in deleted}
        return self.store.open_snapshot()


def assert_true(rows: CachedRows, snapshot: Snapshot, granularities: Sequence[Granularity] = GRANULARITIES) -> None:
    found = rows.get(snapshot, [*IDS, "unknown"], granularities)
    expected = read_documents(snapshot, IDS, granularities)
    assert found.keys() == expected.keys()
    for doc_id, document in found.items():
        assert document.rows.equals(expected[doc_id].rows)
        assert document.source_version == expected[doc_id].source_version
        assert not document.is_lossy
    held = rows.get_held(snapshot, list(expected), granularities)
    assert held is None or {name: document.rows for name, document in held.items()} == {
        name: document.rows for name, document in expected.items()
    }


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(IDS), st.one_of(st.none(), st.integers(1, 3)), max_size=3),
            st.sampled_from(["read", "skip", "read older", "restart", "roll back"]),
        ),
        min_size=1,
        max_size=6,
    ),
    memory=st.sampled_from([BUDGETS, {"sentence": 4000}, {}]),
)
def test_every_snapshot_gives_its_own_rows(
    steps: list[tuple[dict[str, int | None], str]],
    memory: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("history")
    keeper = make_keeper(folder / "cache", memory=memory)
    rows = CachedRows(keeper)
    history = History(folder)
    before: Snapshot | None = None
    for changes, action in steps:
        snapshot = history.publish({"a.md": 1, **changes})
        if action == "roll back" and before is not None:
            begin(history.store).publish_earlier(before.sequence, run={})
            snapshot = history.store.open_snapshot()
        rows.prepare(snapshot, before=before)
        if action == "read older" and before is not None:
            assert_true(rows, before)
        if before is not None:
            rows.release(before)
            assert_true(rows, before)  # by its number, straight from the store
        if action != "skip":
            assert_true(rows, snapshot)
            assert_true(rows, snapshot, ("sentence",))
        if action == "restart":
            keeper.close()
            keeper = make_keeper(folder / "cache", memory=memory)
            rows = CachedRows(keeper)
            rows.prepare(snapshot, before=None)
            assert_true(rows, snapshot)
        before = snapshot
    keeper.close()


def test_a_publish_keeps_the_entries_of_what_it_did_not_touch(tmp_path: Path) -> None:
    history = History(tmp_path)
    rows = CachedRows(make_keeper(tmp_path / "cache"))
    first = history.publish(dict.fromkeys(IDS, 2))
    rows.prepare(first, before=None)
    for expected in ({"snapshot"}, {"memory"}):
        assert {document.tier for document in rows.get(first, IDS, ("sentence",)).values()} == expected
    second = history.publish({"b.md": 3})
    rows.prepare(second, before=first)
    tiers = {doc_id: document.tier for doc_id, document in rows.get(second, IDS, ("sentence",)).items()}
    assert tiers == {"a.md": "memory", "b.md": "snapshot", "c.md": "memory", "d.md": "memory"}
    assert_true(rows, second)
    assert rows.count()["miss"] == 1


def test_after_a_restart_the_disk_has_them(tmp_path: Path) -> None:
    history = History(tmp_path)
    snapshot = history.publish(dict.fromkeys(IDS, 2))
    for expected in ({"snapshot"}, {"disk"}):
        keeper = make_keeper(tmp_path / "cache")
        rows = CachedRows(keeper)
        rows.prepare(snapshot, before=None)
        assert {document.tier for document in rows.get(snapshot, IDS, ("sentence",)).values()} == expected
        assert_true(rows, snapshot, ("sentence",))
        keeper.close()
    assert keeper.count()["disk"]["hits"] == len(IDS)


def test_rows_of_four_bits_say_that_they_lost(tmp_path: Path) -> None:
    history = History(tmp_path)
    snapshot = history.publish({"a.md": 2})
    for is_lossy in (False, True):
        keeper = make_keeper(tmp_path / "cache", codec="int4")
        rows = CachedRows(keeper)
        rows.prepare(snapshot, before=None)
        assert rows.get(snapshot, ["a.md"], ("sentence",))["a.md"].is_lossy == is_lossy
        keeper.close()


def test_what_memory_has_is_given_without_waiting(tmp_path: Path) -> None:
    history = History(tmp_path)
    snapshot = history.publish({"a.md": 2, "b.md": 1})
    keeper = make_keeper(tmp_path / "cache")
    rows = CachedRows(keeper)
    rows.prepare(snapshot, before=None)
    wanted = ("document", "sentence")
    assert rows.get_held(snapshot, ["a.md", "b.md"], wanted) is None
    assert not any(rows.count().values()), "what is not held counts when it is read"
    expected = rows.get(snapshot, ["a.md", "b.md"], wanted)
    held = rows.get_held(snapshot, ["a.md", "b.md"], wanted)
    assert held is not None
    for name, document in held.items():
        assert document.tier == "memory" and document.rows.equals(expected[name].rows)
    assert rows.count() == {"snapshot": 2, "memory": 2, "disk": 0, "miss": 0}
    assert rows.get_held(snapshot, ["a.md", "unknown"], wanted) is None
    assert rows.get_held(snapshot, ["a.md"], GRANULARITIES) is None, "paragraphs have no room in this cache"
    assert rows.get_held(history.publish({"a.md": 1}), ["b.md"], wanted) is None, "not prepared"
    keeper.close()
