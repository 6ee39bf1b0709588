"""A writer sleeps at every point of its work in turn, while another one takes over and publishes: when it wakes up it
changes nothing any more, and hears that it was overtaken."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.errors import CommitConflict, FencedError, LeaseError
from lodestream.schema import features_schema
from lodestream.storage import steps
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from tests.support.store_rows import DIM, begin, publish, read_contents, take_lease, write

BEFORE = {f"before-{number}": ["1"] for number in range(2)}


def make_store(folder: Path) -> FeatureStore:
    """A store with some small files, and with another writer's junk at the head of a table."""
    store = FeatureStore.open_or_create(str(folder), dim=DIM)
    for doc_id, texts in BEFORE.items():
        publish(store, {doc_id: texts})
    version = store.pointer().tables["features"]
    Table.open(store.location.child("features.lance"), features_schema(DIM), version=version)._dataset.restore()
    take_lease(store).release()
    return store


def work(store: FeatureStore) -> None:
    """What the sleeper does: a run of one chunk, and upkeep."""
    lease = store.open_lease("sleeper", ttl_s=60)
    lease.acquire()
    transaction = begin(store, run_id="sleeper", lease=lease)
    write(transaction, {"a": ["3"], "b": ["4"]}, deleted=["before-0"])
    transaction.publish(checkpoint={"files": "sleeper"}, run={})
    collect_garbage(store, UpkeepOptions(), lease=lease, run_id="upkeep")


class Overtaking:
    """At the passage ``number`` of any step another writer begins, writes and publishes."""

    def __init__(self, store: FeatureStore, number: int) -> None:
        self._store, self._left = store, number
        self.passed: list[str] = []
        self.contents: dict[str, list[str]] = {}
        self.pointer: PointerRecord | None = None

    def reach(self, step: str) -> None:
        self._left -= 1
        if self._left > 0 or self.pointer is not None:
            self.passed += [step] if self.pointer is None else []
            return
        self.passed.append(step)
        steps.reach = lambda step: None
        lease = take_lease(self._store)
        transaction = begin(self._store, run_id="other", lease=lease)
        self.contents = read_contents(transaction.base) | {"other": ["9"]}
        write(transaction, {"other": ["9"]})
        transaction.publish(checkpoint={"files": "other"}, run={})
        lease.release()
        self.pointer = self._store.pointer()


@pytest.fixture
def passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All points that the work passes, one after the other."""
    passed: list[str] = []
    store = make_store(tmp_path / "undisturbed")
    monkeypatch.setattr(steps, "reach", passed.append)
    work(store)
    monkeypatch.undo()
    assert set(passed) == set(steps.STEPS), "a step is never passed: this would not show what it should"
    assert read_contents(store.open_snapshot()) == {"before-1": ["1"], "a": ["3"], "b": ["4"]}
    return passed


@pytest.mark.timeout(600)
def test_a_sleeper_changes_nothing(tmp_path: Path, passages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for number, step in enumerate(passages, start=1):
        store = make_store(tmp_path / str(number))
        other = Overtaking(store, number)
        monkeypatch.setattr(steps, "reach", other.reach)
        try:
            work(store)
        except (FencedError, LeaseError, CommitConflict) as error:
            told.append(error.hint)
        monkeypatch.undo()
        assert other.passed[-1] == step, "the work went another way than the undisturbed one"
        assert store.pointer() == other.pointer, f"the sleeper of {number} {step} has changed the pointer"
        assert read_contents(store.open_snapshot()) == other.contents, f"{number} {step}"
        assert read_contents(publish(store, {"c": ["5"]})) == other.contents | {"c": ["5"]}, f"{number} {step}"
    assert all(told)
    # From the last swing of the pointer on there is nothing left that another one could take away.
    assert passages[len(told) :] == ["register.linked", "publish.swung", "publish.trimmed"]
