from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lodestream.errors import CommitConflict, NotFoundError, StoreNotFound, StoreSchemaMismatch
from lodestream.schema import SCHEMA_VERSION
from lodestream.storage import migration as migration_module
from lodestream.storage.migration import migrate_store
from lodestream.storage.snapshot import open_register
from lodestream.storage.store import FeatureStore
from tests.support import schema_1
from tests.support.store_rows import DIM, begin, make_documents, make_features, publish, read_rows

CONTENTS = {"a": ["1", "2"], "b": ["3"], "c": []}
STAGED = {
    "run_id": "killed",
    "kind": "backfill",
    "tables": {"features": 2, "documents": 2},
    "feature_version": "f1",
    "recipe": {"model": "toy"},
    "num_chunks": 1,
    "staged_at": "2026-01-03T00:00:00+00:00",
}


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """A store of schema 1 in which the document c is in quarantine."""
    documents = pa.concat_tables(
        [make_documents({"a": ["1", "2"], "b": ["3"]}), make_documents({"c": []}, quarantine_reason="torn")]
    )
    schema_1.write_store(tmp_path / "store", features=make_features(CONTENTS), documents=documents)
    return tmp_path / "store"


def test_an_old_store_says_what_to_type(old_store: Path) -> None:
    with pytest.raises(StoreSchemaMismatch, match="schema version 1(.|\n)*lodestream migrate"):
        FeatureStore.open(str(old_store))


def test_migrated_store_has_its_rows_and_their_states(old_store: Path) -> None:
    done = migrate_store(str(old_store))
    assert (done.schema_before, done.schema_after, done.num_documents) == (1, SCHEMA_VERSION, 3)
    store = FeatureStore.open(str(old_store))
    snapshot = store.open_snapshot()
    assert (snapshot.sequence, snapshot.feature_version) == (done.sequence, "f1") == (3, "f1")
    wanted = sorted(make_features(CONTENTS).to_pylist(), key=lambda row: row["key"])
    assert sorted(read_rows(snapshot, "features"), key=lambda row: row["key"]) == wanted
    states = {row["doc_id"]: row for row in read_rows(snapshot, "source_state")}
    documents = {row["doc_id"]: row for row in read_rows(snapshot, "documents")}
    assert states.keys() == documents.keys() == CONTENTS.keys()
    for doc_id, state in states.items():
        for name in ("source", "source_version", "content_hash", "quarantine_reason"):
            assert state[name] == documents[doc_id][name]
        assert state["first_seen_at"] == documents[doc_id]["updated_at"] and state["size_bytes"] is None
    assert [states[name]["quarantine_attempts"] for name in "abc"] == [0, 0, 1]
    assert (states["a"]["retry_at"], states["c"]["retry_at"]) == (None, documents["c"]["updated_at"])
    pointer = store.pointer()
    assert (pointer.epoch, pointer.schema_version, pointer.run_id) == (6, SCHEMA_VERSION, "old-run")


def test_migrated_store_is_written_like_any_other(old_store: Path) -> None:
    migrate_store(str(old_store))
    store = FeatureStore.open_or_create(str(old_store), dim=DIM)
    snapshot = publish(store, {"d": ["4"]}, deleted=["a"])
    assert sorted(row["doc_id"] for row in read_rows(snapshot, "source_state")) == ["b", "c", "d"]
    with pytest.raises(NotFoundError, match="snapshots 3 to 4"):
        store.open_snapshot(2)


def test_migrating_again_changes_nothing(old_store: Path) -> None:
    migrate_store(str(old_store))
    before = open_register(old_store).read()
    done = migrate_store(str(old_store))
    assert (done.schema_before, done.sequence, done.num_documents) == (SCHEMA_VERSION, 3, 0)
    assert open_register(old_store).read() == before


def test_killed_migration_is_done_again(old_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_register(old_store).read()

    def kill(path: Path, known: frozenset[str]) -> frozenset[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(migration_module, "sync_new_files", kill)
        with pytest.raises(KeyboardInterrupt):
            migrate_store(str(old_store))
    assert open_register(old_store).read() == before
    assert migrate_store(str(old_store)).num_documents == 3
    snapshot = FeatureStore.open(str(old_store)).open_snapshot()
    assert sorted(row["doc_id"] for row in read_rows(snapshot, "source_state")) == ["a", "b", "c"]


def test_a_run_that_publishes_meanwhile_wins(old_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register = open_register(old_store)
    follow = migration_module._follow

    def intrude(*arguments: Any) -> Any:
        record, version = register.read() or ({}, None)
        register.cas(version, record | {"nonce": "other run", "epoch": 6})
        return follow(*arguments)

    monkeypatch.setattr(migration_module, "_follow", intrude)
    with pytest.raises(CommitConflict):
        migrate_store(str(old_store))
    assert (register.read() or ({}, ""))[0]["schema_version"] == 1


def test_staged_work_is_given_up_and_named(tmp_path: Path) -> None:
    schema_1.write_store(tmp_path, features=make_features(CONTENTS), documents=make_documents(CONTENTS), staged=STAGED)
    assert migrate_store(str(tmp_path)).dropped_run_id == "killed"
    transaction = begin(FeatureStore.open(str(tmp_path)))
    assert not transaction.resumed


def test_other_versions_are_refused(old_store: Path) -> None:
    register = open_register(old_store)
    for number in (0, SCHEMA_VERSION + 1):
        record, version = register.read() or ({}, None)
        register.cas(version, record | {"nonce": f"v{number}", "schema_version": number})
        with pytest.raises(StoreSchemaMismatch, match="can be migrated"):
            migrate_store(str(old_store))


def test_nothing_to_migrate(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="lodestream run"):
        migrate_store(str(tmp_path))
