"""Two writers at one store: the one that began later wins, and the other one is told before it can do harm."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from lance import LanceDataset

from lodestream.errors import CommitConflict, FencedError, LeaseError, LeaseLost, StoreCorrupt
from lodestream.schema import features_schema
from lodestream.storage import steps
from lodestream.storage.failures import explain_errors
from lodestream.storage.lease import Lease
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from tests.support.memory_register import MemoryRegister
from tests.support.store_rows import DIM, begin, publish, read_contents, take_lease, write


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)


def count_versions(store: FeatureStore) -> int:
    return len(Table.open(store.location.child("features.lance"), features_schema(DIM), version=1).list_versions())


def test_overtaken_writer_touches_no_table(store: FeatureStore) -> None:
    """It looks first: what it would commit, the newer one would have to undo."""
    first = begin(store)
    write(first, {"a": ["1"]})
    second = begin(store)
    before = count_versions(store)
    for step in (lambda: write(first, {"a": ["2"]}), lambda: first.publish(checkpoint={}, run={})):
        with pytest.raises(FencedError):
            step()
    assert count_versions(store) == before
    write(second, {"b": ["3"]})
    second.publish(checkpoint={}, run={})


@pytest.mark.parametrize("is_newer", [True, False])
def test_two_writers_at_one_table(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, is_newer: bool) -> None:
    """Between the files and the commit another writer restores the table: the older one is told that it is fenced, the
    newer one does it again."""
    publish(store, {"a": ["1"]})
    if not is_newer:
        zombie = begin(store, run_id="zombie")
    transaction = begin(store)

    def intrude(step: str) -> None:
        if step == "chunk.files_written":
            monkeypatch.setattr(steps, "reach", lambda step: None)
            other = begin(store, run_id="newer") if is_newer else zombie
            other._tables["features"]._dataset.restore()

    monkeypatch.setattr(steps, "reach", intrude)
    if is_newer:
        with pytest.raises(FencedError):
            write(transaction, {"a": ["2"]})
        return
    write(transaction, {"a": ["2"]})
    transaction.publish(checkpoint={}, run={})
    assert read_contents(store.open_snapshot()) == {"a": ["2"]}


def test_store_created_by_two_at_once(tmp_path: Path) -> None:
    """Both find nothing there, and both make the tables: both end up with the same store."""
    barrier, outcomes = threading.Barrier(4), []

    def create() -> None:
        barrier.wait()
        try:
            outcomes.append(FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM).pointer().nonce)
        except Exception as error:
            outcomes.append(repr(error))

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4 and len(set(outcomes)) == 1, outcomes


def index(dataset: LanceDataset, store: FeatureStore) -> None:
    with explain_errors(store.location):
        dataset.create_scalar_index("doc_id", "BTREE")


def test_conflict_of_indexing_is_no_corruption(store: FeatureStore) -> None:
    """An index made on what another writer has rolled back."""
    publish(store, {"a": ["1"]})
    stale = Table.open(store.location.child("features.lance"), features_schema(DIM), version=1)._dataset
    Table.open(store.location.child("features.lance"), features_schema(DIM), version=2)._dataset.restore()
    with pytest.raises(CommitConflict, match="run the same command again"):
        index(stale, store)


def test_transactions_follow_each_other_under_one_lease(store: FeatureStore) -> None:
    lease = take_lease(store)
    described: dict[str, Any] = {"kind": "refresh", "feature_version": "f1", "recipe": {}}
    for number in range(3):
        transaction = store.begin(lease=lease, run_id=f"r{number}", **described)
        write(transaction, {"a": [str(number)]})
        transaction.publish(checkpoint={}, run={})
    assert store.pointer().epoch == lease.epoch == 1
    take_lease(store)
    stale = store.begin(lease=lease, run_id="late", **described)  # nobody has begun under the newer lease yet
    begin(store)
    with pytest.raises(FencedError):
        write(stale, {"a": ["late"]})
    with pytest.raises(FencedError):
        store.begin(lease=lease, run_id="later", **described)


def test_equal_epochs_of_two_tenures(store: FeatureStore) -> None:
    """A wiped register gives out an epoch again: the pointer tells the two apart."""
    publish(store, {"a": ["1"]})
    impostor = Lease(MemoryRegister(), holder="impostor", place="here")
    assert impostor.acquire() == store.pointer().epoch
    with pytest.raises(FencedError):
        store.begin(lease=impostor, run_id="r", kind="refresh", feature_version="f1", recipe={})


def test_lost_lease_stops_the_writer(store: FeatureStore) -> None:
    lease = take_lease(store)
    transaction = store.begin(lease=lease, run_id="r", kind="refresh", feature_version="f1", recipe={})
    write(transaction, {"a": ["1"]})
    take_lease(store)
    lease.renew()
    assert lease.lost.is_set()
    with pytest.raises(LeaseLost, match="let the other run end"):
        write(transaction, {"a": ["2"]})
    with pytest.raises(LeaseLost):
        transaction.publish(checkpoint={}, run={})
    assert begin(store).resumed


def test_store_created_and_written_to_while_another_one_creates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one finds rows where it wanted to make an empty table: they belong to the store that is there by now."""
    place, create = str(tmp_path / "store"), Table.create

    def overtake(*arguments: Any) -> Table:
        monkeypatch.undo()
        publish(FeatureStore.open_or_create(place, dim=DIM), {"a": ["1"]})
        return create(*arguments)

    monkeypatch.setattr(Table, "create", overtake)
    store = FeatureStore.open_or_create(place, dim=DIM)
    assert read_contents(store.open_snapshot()) == {"a": ["1"]}


def test_what_a_sleeper_stood_on_is_gone(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer writer has removed the version that an older one had open: that one is told so, nothing is corrupt."""
    transaction = begin(store)

    def overtake(*arguments: Any) -> Table:
        begin(store)
        raise StoreCorrupt("not found")

    monkeypatch.setattr(Table, "replace_documents", overtake)
    with pytest.raises((FencedError, LeaseError)):
        write(transaction, {"a": ["1"]})
