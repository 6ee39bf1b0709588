from __future__ import annotations

import os
import pickle
import time
from datetime import timedelta
from pathlib import Path

import pytest

from lodestream.errors import FencedError
from lodestream.storage.compaction import Clutter
from lodestream.storage.debris import find_debris
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage, keep_up, measure_store, tend
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import DIM, begin, keep_snapshots, publish, read_contents, take_lease, write

OPTIONS = UpkeepOptions(max_small_files=3, max_deleted_share=0.5, min_deleted_rows=5)
DAY_S = 86_400


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(tmp_path / "store", dim=DIM)


def refresh(store: FeatureStore, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        publish(store, {f"d{number}": ["a", str(number)], "same": [str(number)]})


def test_nothing_is_done_before_it_is_due(store: FeatureStore) -> None:
    assert keep_up(store, OPTIONS, lease=take_lease(store), run_id="up") is None
    refresh(store, 2)
    before = store.pointer()
    assert keep_up(store, OPTIONS, lease=take_lease(store), run_id="up") is None
    assert store.pointer() == before


def test_many_files_become_one_and_the_content_stays(store: FeatureStore) -> None:
    refresh(store, 5)
    old = store.open_snapshot()
    contents, before = read_contents(old), store.pointer()
    done = keep_up(store, OPTIONS, lease=take_lease(store), run_id="up")
    assert done is not None
    assert done.compacted == ("features", "documents", "source_state")
    after = store.pointer()
    assert (after.sequence, after.run_id) == (before.sequence + 1, "up") == (done.sequence, "up")
    assert (after.checkpoint, after.run, after.checked_at) == (before.checkpoint, before.run, before.checked_at)
    assert [len(table.fragments()) for table in store.open_tables().values()] == [1, 1, 1]
    assert read_contents(store.open_snapshot()) == contents
    assert keep_up(store, OPTIONS, lease=take_lease(store), run_id="up") is None
    # Whoever reads the snapshot from before goes on reading it.
    assert read_contents(old) == contents
    assert read_contents(store.open_snapshot(before.sequence)) == contents


def test_deleted_rows_make_it_due(store: FeatureStore) -> None:
    publish(store, {f"d{number}": ["a", "b"] for number in range(10)})
    publish(store, {}, deleted=[f"d{number}" for number in range(4)])
    assert keep_up(store, OPTIONS, lease=take_lease(store), run_id="up") is None
    publish(store, {}, deleted=[f"d{number}" for number in range(4, 7)])
    done = keep_up(store, OPTIONS, lease=take_lease(store), run_id="up")
    assert done is not None
    assert done.compacted == ("features", "documents", "source_state")
    assert [fragment.metadata.num_deletions for fragment in store.open_tables()["features"].fragments()] == [0]


def test_when_it_is_due() -> None:
    def is_due(num_small_files: int, num_deleted_rows: int, deleted_share: float) -> bool:
        return OPTIONS.is_due(
            Clutter(num_small_files=num_small_files, num_deleted_rows=num_deleted_rows, deleted_share=deleted_share)
        )

    assert not is_due(3, 5, 0.5)
    assert is_due(4, 0, 0.0)
    assert is_due(0, 5, 0.6)
    assert not is_due(0, 4, 0.9)


def test_unfinished_work_is_left_alone(store: FeatureStore) -> None:
    """A publish of merged files would leave the staged rows out; they must survive upkeep, and be resumed."""
    refresh(store, 5)
    write(begin(store, run_id="killed"), {"staged": ["x"]})
    before = store.pointer()
    assert keep_up(store, OPTIONS, lease=take_lease(store), run_id="up") is None
    done = collect_garbage(store, OPTIONS, lease=take_lease(store), run_id="up")
    assert done.compacted == ()
    assert "killed" in done.postponed
    assert store.pointer() == before
    resumed = begin(store)
    assert resumed.resumed
    assert "staged" in read_contents(resumed.publish(checkpoint={}, run={}))


def test_number_of_files_is_bounded(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that nobody keeps go as soon as they are old enough; here every version is."""
    monkeypatch.setattr("lodestream.storage.transaction.RETAINED_AGE", timedelta(0))
    keep_snapshots(store, 2)
    monkeypatch.setattr("lodestream.storage.transaction.MAX_UNREAD_VERSIONS", 8)
    counts = []
    for number in range(40):
        refresh(store, 1, start=number)
        keep_up(store, OPTIONS, lease=take_lease(store), run_id="up")
        counts.append(measure_store(store)[0])
    assert max(counts[20:]) <= max(counts[:20]) + 3
    assert read_contents(store.open_snapshot())["same"] == ["39"]


def test_snapshot_that_was_the_latest_one_for_long_stays_open_for_an_hour(store: FeatureStore) -> None:
    refresh(store, 1)
    keep_snapshots(store, 1)
    for path in store.root.rglob("*"):  # published a day ago, and followed only now
        os.utime(path, (time.time() - DAY_S, time.time() - DAY_S))
    reader = store.open_snapshot()
    contents = read_contents(reader)
    refresh(store, 1, start=1)
    collect_garbage(store, OPTIONS, lease=take_lease(store), run_id="gc")
    assert [record.sequence for record in store.pointer().history] == [3]
    assert read_contents(pickle.loads(pickle.dumps(reader))) == contents, "as a reader that has cached nothing yet"
    files = [path.name for path in (store.root / "features.lance" / "_versions").iterdir()]
    for path in store.root.rglob("*"):
        os.utime(path, (time.time() - DAY_S, time.time() - DAY_S))
    collect_garbage(store, OPTIONS, lease=take_lease(store), run_id="gc")
    assert len(list((store.root / "features.lance" / "_versions").iterdir())) < len(files)


def test_garbage_collection_says_what_it_freed(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(store, 6)
    monkeypatch.setattr("lodestream.storage.transaction.RETAINED_AGE", timedelta(0))
    keep_snapshots(store, 1)
    lease = take_lease(store)
    before = folder_bytes(store.root)
    done = collect_garbage(store, OPTIONS, lease=lease, run_id="gc")
    assert done.bytes_before == before
    assert done.bytes_after == folder_bytes(store.root) < before
    assert done.freed_bytes == before - folder_bytes(store.root)
    assert done.dropped == tuple(range(1, 7))
    assert [record.sequence for record in store.pointer().history] == [7]
    assert read_contents(store.open_snapshot())["d5"] == ["a", "5"]


def test_debris_is_swept_by_age(store: FeatureStore) -> None:
    refresh(store, 2)
    features = store.root / "features.lance"
    junk = [features / "data" / "junk.lance", features / "_indices" / "dead" / "page_data.lance"]
    for path in junk:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
    young, old = junk
    long_ago = time.time() - 2 * DAY_S
    os.utime(old, (long_ago, long_ago))
    found = [item.name for item in find_debris(store.open_tables()["features"])]
    assert found == ["_indices/dead/page_data.lance", "data/junk.lance"]
    assert tend(store, OPTIONS, lease=take_lease(store), run_id="up").num_swept == 1
    assert young.exists()
    assert not old.exists()
    read_contents(store.open_snapshot())


def test_a_store_without_debris_has_none(store: FeatureStore) -> None:
    refresh(store, 6)
    collect_garbage(store, OPTIONS, lease=take_lease(store), run_id="gc")
    refresh(store, 2, start=6)
    assert {name: find_debris(table) for name, table in store.open_tables().items()} == {
        "features": [],
        "documents": [],
        "source_state": [],
    }


def test_an_overtaken_upkeep_publishes_nothing(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(store, 5)

    def overtake(step: str) -> None:
        if step == "publish.compacted":
            monkeypatch.setattr("lodestream.storage.steps.reach", lambda step: None)
            publish(store, {"newer": ["n"]})

    monkeypatch.setattr("lodestream.storage.steps.reach", overtake)
    with pytest.raises(FencedError):
        keep_up(store, OPTIONS, lease=take_lease(store), run_id="up")
    assert read_contents(store.open_snapshot())["newer"] == ["n"]
    assert store.pointer().run_id == "run"
    refresh(store, 1, start=9)
    assert read_contents(store.open_snapshot())["d9"] == ["a", "9"]


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.lance/**/*") if path.is_file())
