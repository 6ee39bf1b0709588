"""A writer that was stopped and followed by another one wakes up: in every window, whatever it does to the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import pytest

from lodestream.errors import CommitStateUnknown, FencedError, LeaseLost, StoreUnwritable
from lodestream.storage import steps
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.registers.protocol import Record, Version
from lodestream.storage.store import FeatureStore
from lodestream.storage.transaction import Transaction
from tests.support.store_rows import DIM, begin, make_features, publish, read_contents, take_lease, write

OLD = {"a": ["old"], "zombie": ["z"]}
NEW = {"a": ["new"]}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    publish(made, {"first": ["1"]})
    return made


def at(monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], object]) -> None:
    """The next time that ``step`` is passed, ``act`` happens first."""

    def reach(passed: str) -> None:
        if passed == step:
            monkeypatch.setattr(steps, "reach", lambda passed: None)
            act()

    monkeypatch.setattr(steps, "reach", reach)


def test_stopped_before_it_raises_the_epoch(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the lease and has read the pointer; then another one comes, publishes and goes."""
    lease = take_lease(store)
    swap = LocalRegister.cas

    def stop_first(register: LocalRegister, expected: Version | None, record: Record) -> Version:
        if register.folder.name == "pointer":
            monkeypatch.setattr(LocalRegister, "cas", swap)
            publish(store, NEW)
        return swap(register, expected, record)

    monkeypatch.setattr(LocalRegister, "cas", stop_first)
    with pytest.raises(FencedError):
        begin(store, lease=lease)
    assert read_contents(store.open_snapshot()) == {"first": ["1"], **NEW}


@pytest.mark.parametrize(
    "step",
    [
        "chunk.files_written",
        "chunk.features_committed",
        "chunk.documents_committed",
        "chunk.source_state_committed",
        "chunk.synced",
        "chunk.staged",
        "publish.indexed",
        "publish.synced",
    ],
)
@pytest.mark.parametrize("is_told", [True, False], ids=["heartbeat", "pointer alone"])
def test_stopped_and_followed(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, step: str, is_told: bool) -> None:
    """Between staging, committing and publishing; it is told by its heartbeat, or by the pointer alone."""
    lease = take_lease(store)
    zombie = begin(store, run_id="zombie", lease=lease)

    def follow() -> None:
        publish(store, NEW)
        if is_told:
            lease.renew()

    at(monkeypatch, step, follow)
    with pytest.raises((FencedError, LeaseLost)):
        _write_and_publish(zombie)
    contents = read_contents(store.open_snapshot())
    assert contents["a"] == ["new"] and store.pointer().staged is None
    # What it left in the tables is rolled over; what it had staged, the next one took over.
    assert read_contents(publish(store, {"last": ["1"]})) == contents | {"last": ["1"]}


def _write_and_publish(transaction: Transaction) -> None:
    write(transaction, OLD)
    transaction.publish(checkpoint={"files": "zombie"}, run={})


def _append(path: str) -> None:
    lance.write_dataset(make_features({"junk": ["j"]}), path, mode="append")


def _overwrite(path: str) -> None:
    lance.write_dataset(make_features({"junk": ["j"]}), path, mode="overwrite")


def _restore(path: str) -> None:
    lance.dataset(path, version=1).restore()


def _delete(path: str) -> None:
    lance.dataset(path).delete("true")


def _compact(path: str) -> None:
    lance.dataset(path).optimize.compact_files()


@pytest.mark.parametrize("act", [_append, _overwrite, _restore, _delete, _compact])
@pytest.mark.parametrize(
    "step",
    [
        "begin.claimed",
        "chunk.features_committed",
        "chunk.staged",
        "publish.indexed",
        "publish.synced",
        "publish.swung",
        "publish.trimmed",
    ],
)
def test_a_zombie_at_a_table(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[str], None]
) -> None:
    """Lance refuses it nothing; the writer that has the epoch ends as if it were alone."""
    path = store.location.child("features.lance").uri
    publish(store, {"second": ["2"]})
    at(monkeypatch, step, lambda: act(path))
    wanted = {"first": ["1"], "second": ["2"], **NEW}
    assert read_contents(publish(store, NEW)) == wanted
    assert read_contents(store.open_snapshot()) == wanted
    assert read_contents(publish(store, {"last": ["3"]}, deleted=["first"])) == {"second": ["2"], **NEW, "last": ["3"]}
    assert read_contents(store.open_snapshot(3)) == wanted


def test_the_answer_to_the_claim_is_lost(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = LocalRegister.cas
    lease = take_lease(store)

    def lose(register: LocalRegister, expected: Version | None, record: Record) -> Version:
        monkeypatch.setattr(LocalRegister, "cas", swap)
        swap(register, expected, record)
        raise CommitStateUnknown("the reply was lost")

    monkeypatch.setattr(LocalRegister, "cas", lose)
    transaction = begin(store, lease=lease)
    write(transaction, NEW)
    assert transaction.publish(checkpoint={}, run={}).sequence == 2


@pytest.mark.parametrize("step", ["chunk.files_written", "chunk.documents_committed", "chunk.synced", "publish.synced"])
def test_full_disk(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What is published stays, what was staged stays, and with room again the next run goes on."""
    transaction = begin(store, run_id="full")
    write(transaction, {"staged": ["s"]})

    def fill() -> None:
        raise StoreUnwritable("no room to write the store")

    at(monkeypatch, step, fill)
    with pytest.raises(StoreUnwritable):
        _write_and_publish(transaction)
    assert read_contents(store.open_snapshot()) == {"first": ["1"]}
    following = begin(store, run_id="next")
    assert following.resumed
    contents = read_contents(following.base)
    assert contents["staged"] == ["s"]
    write(following, NEW)
    assert read_contents(following.publish(checkpoint={}, run={})) == contents | NEW
