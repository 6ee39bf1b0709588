"""Which snapshots are kept, how one is chosen, and going back to one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.errors import FencedError, NotFoundError
from lodestream.storage import snapshot as snapshot_module
from lodestream.storage import transaction as transaction_module
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage
from lodestream.storage.snapshot import MAX_SNAPSHOTS, Retention, SnapshotRecord
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import (
    DIM,
    begin,
    keep_snapshots,
    leave_unfinished,
    publish,
    read_contents,
    read_rows,
    take_lease,
    write,
)

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)


def make_record(sequence: int, published_at: datetime) -> SnapshotRecord:
    return SnapshotRecord(
        sequence=sequence, tables={}, dim=8, feature_version="f", recipe={}, run_id="r", published_at=published_at
    )


def test_the_most_that_is_kept_may_be_too_few_for_the_time_asked_for() -> None:
    history = [make_record(i, NOON + timedelta(minutes=i)) for i in range(MAX_SNAPSHOTS)]
    now = history[-1].published_at
    assert now is not None
    assert Retention(keep_for_s=86400).falls_short(history, now)
    assert not Retention(keep_for_s=60 * (MAX_SNAPSHOTS - 1)).falls_short(history, now)
    assert not Retention(keep_for_s=86400).falls_short(history[1:], now)
    assert not Retention().falls_short(history, now)


def roll_back(store: FeatureStore, sequence: int) -> Any:
    lease = take_lease(store)
    earlier = store.pointer().find_snapshot(sequence)
    transaction = store.begin(
        lease=lease, run_id="back", kind="rollback", feature_version=earlier.feature_version, recipe=earlier.recipe
    )
    snapshot = transaction.publish_earlier(sequence, run={})
    lease.release()
    return snapshot


@given(st.lists(st.integers(0, 100), max_size=20), st.integers(1, 12), st.integers(0, 100))
def test_what_is_kept(minutes: list[int], number: int, keep_minutes: int) -> None:
    """The last ones by number, and for each moment of the last so many minutes the one that was the latest then."""
    history = [make_record(i, NOON + timedelta(minutes=at)) for i, at in enumerate(sorted(minutes))]
    now = NOON + timedelta(minutes=100)
    kept = Retention(keep_snapshots=number, keep_for_s=60.0 * keep_minutes).select(history, now)
    assert list(kept) == history[len(history) - len(kept) :]
    assert len(kept) >= min(number, len(history))
    for ago in range(keep_minutes):
        moment = now - timedelta(minutes=ago)
        latest = [record for record in history if record.published_at and record.published_at <= moment][-1:]
        assert {record.sequence for record in latest} <= {record.sequence for record in kept}
    needless = list(kept[: max(0, len(kept) - number)])
    for record in needless:
        successor = history[record.sequence + 1].published_at
        assert successor is not None and successor > now - timedelta(minutes=keep_minutes)


def test_never_more_than_the_pointer_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "MAX_SNAPSHOTS", 3)
    history = [make_record(number, NOON) for number in range(9)]
    kept = Retention(keep_snapshots=2, keep_for_s=1e9).select(history, NOON)
    assert [record.sequence for record in kept] == [6, 7, 8]


def test_by_moment(store: FeatureStore) -> None:
    first = publish(store, {"a": ["1"]})
    second = publish(store, {"a": ["2"]})
    assert first.published_at is not None and second.published_at is not None
    instant = timedelta(microseconds=1)
    assert store.open_snapshot(as_of=second.published_at).sequence == 2
    assert store.open_snapshot(as_of=second.published_at - instant).sequence == 1
    assert read_contents(store.open_snapshot(as_of=first.published_at)) == {"a": ["1"]}
    with pytest.raises(NotFoundError, match="snapshots 1 to 2"):
        store.open_snapshot(as_of=first.published_at - instant)
    with pytest.raises(ValueError, match="not by both"):
        store.open_snapshot(1, as_of=NOON)
    with pytest.raises(ValueError, match="time zone"):
        store.open_snapshot(as_of=NOON.replace(tzinfo=None))


def test_retention_stays_until_it_is_changed(store: FeatureStore) -> None:
    keep_snapshots(store, 2)
    for number in range(4):
        publish(store, {"a": [str(number)]})
    assert [record.sequence for record in store.pointer().history] == [3, 4]
    lease = take_lease(store)
    options = UpkeepOptions(retention=Retention(keep_snapshots=1))
    assert collect_garbage(store, options, lease=lease, run_id="gc").dropped[0] == 3
    assert len(store.pointer().history) == 1


def test_a_pinned_snapshot_outlives_refreshes_upkeep_and_cleanup(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_module, "RETAINED_AGE", timedelta(0))
    monkeypatch.setattr(transaction_module, "MAX_UNREAD_VERSIONS", 0)
    pinned = publish(store, {"a": ["1"], "b": ["2"]})
    for number in range(8):
        publish(store, {"a": [str(number)], f"c{number}": ["x"]})
        collect_garbage(store, UpkeepOptions(sweep_after=timedelta(0)), lease=take_lease(store), run_id="gc")
        keep_snapshots(store, 40)
    assert read_contents(pinned) == read_contents(store.open_snapshot(1)) == {"a": ["1"], "b": ["2"]}


def test_going_back(store: FeatureStore) -> None:
    for number in range(3):
        transaction = begin(store, run_id=f"r{number}")
        write(transaction, {"a": [str(number)], f"d{number}": ["x"]}, deleted=[f"d{number - 1}"] if number else [])
        transaction.publish(checkpoint={"files": number}, run={"number": number})
    before = store.open_snapshot()
    snapshot = roll_back(store, 2)
    assert snapshot.sequence == 4 and read_contents(snapshot) == {"a": ["1"], "d1": ["x"]}
    assert {row["doc_id"] for row in read_rows(snapshot, "source_state")} == {"a", "d1"}
    pointer = store.pointer()
    assert (pointer.checkpoint, pointer.run_id, pointer.history[-1].checkpoint) == ({"files": 1}, "back", {"files": 1})
    assert read_contents(before) == read_contents(store.open_snapshot(3)) == {"a": ["2"], "d2": ["x"]}
    # Writing goes on from there, and nothing of what was left behind comes back.
    after = publish(store, {"e": ["9"]})
    assert after.sequence == 5 and read_contents(after) == {"a": ["1"], "d1": ["x"], "e": ["9"]}
    assert read_contents(roll_back(store, 3)) == {"a": ["2"], "d2": ["x"]}


def test_going_back_gives_staged_work_up(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    publish(store, {"a": ["2"]})
    leave_unfinished(store, {"b": ["3"]}, run_id="killed")
    assert read_contents(roll_back(store, 1)) == {"a": ["1"]}
    assert store.pointer().staged is None and not begin(store).resumed


def test_going_back_to_another_feature_version(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    transaction = begin(store, feature_version="f2")
    write(transaction, {"a": ["2"]})
    transaction.publish(checkpoint={}, run={})
    assert roll_back(store, 1).feature_version == store.pointer().feature_version == "f1"


def test_no_way_back(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    with pytest.raises(NotFoundError, match="snapshots 1 to 1"):
        roll_back(store, 7)
    transaction = begin(store)
    begin(store)
    with pytest.raises(FencedError):
        transaction.publish_earlier(1, run={})


def test_a_version_that_is_gone_back_to_is_never_cleaned_up(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_module, "RETAINED_AGE", timedelta(0))
    monkeypatch.setattr(transaction_module, "MAX_UNREAD_VERSIONS", 0)
    for number in range(3):
        publish(store, {"a": [str(number)]})
    roll_back(store, 1)
    keep_snapshots(store, 1)
    collect_garbage(store, UpkeepOptions(), lease=take_lease(store), run_id="gc")
    assert read_contents(store.open_snapshot()) == {"a": ["0"]}
    assert read_contents(publish(store, {"b": ["1"]})) == {"a": ["0"], "b": ["1"]}
