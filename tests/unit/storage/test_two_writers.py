"""Two writers at one store: the one that began later wins, and the other one is told before it can do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.errors import FencedError
from lodestream.schema import features_schema
from lodestream.storage import steps
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from tests.support.store_rows import DIM, begin, publish, read_contents, write


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
