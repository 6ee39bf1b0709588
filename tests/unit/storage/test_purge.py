from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.errors import NotFoundError, StoreError, StoreNotFound
from lodestream.storage.purge import plan_purge, purge_documents
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from tests.support.store_rows import DIM, begin, make_features, publish, read_contents, take_lease, write

SECRET = "zq7secretzq7"
KEPT = {f"kept{number}": ["a", "b", str(number)] for number in range(6)}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(tmp_path / "store", dim=DIM)


def traces(store: FeatureStore) -> set[str]:
    """What of the secret document can be found in the raw bytes of the store's files: its text, name, key and codes."""
    row = make_features({"secret/doc": [SECRET]}, dim=DIM).to_pylist()[0]
    wanted = {
        "text": SECRET.encode(),
        "name": b"secret/doc",
        "key": row["key"],
        "fingerprint": row["fingerprint"],
        "codes": bytes(code % 256 for code in row["codes"]),
    }
    found = set()
    for path in store.root.rglob("*"):
        body = path.read_bytes() if path.is_file() else b""
        found |= {name for name, value in wanted.items() if value in body}
    return found


@pytest.mark.parametrize("is_deleted", [False, True])
def test_no_file_holds_the_document_any_more(store: FeatureStore, *, is_deleted: bool) -> None:
    """Also one that was deleted already, and is left in the files and in earlier snapshots only."""
    publish(store, KEPT | {"secret/doc": [SECRET]})
    publish(store, {"kept1": ["changed"]}, deleted=["secret/doc"] if is_deleted else [])
    assert traces(store) == {"text", "name", "key", "fingerprint", "codes"}
    plan = plan_purge(store, ["secret/doc"])
    assert plan.held_by == ((1,) if is_deleted else (1, 2))
    assert plan.lost_sequences == (1, 2)
    assert plan.num_rows["features"] == (0 if is_deleted else 2)
    done = purge_documents(store, plan, lease=take_lease(store), run_id="purge")
    assert traces(store) == set()
    assert done.sequence == 3
    assert [record.sequence for record in store.pointer().history] == [3]
    assert read_contents(store.open_snapshot()) == KEPT | {"kept1": ["changed"]}
    # Look-ups go through indexes that were made anew.
    assert store.open_snapshot().get_features("kept2").num_rows == 4
    publish(store, {"kept2": ["later"]})
    assert read_contents(store.open_snapshot())["kept2"] == ["later"]


def test_unfinished_work_is_given_up(store: FeatureStore) -> None:
    publish(store, KEPT)
    write(begin(store, run_id="killed"), {"secret/doc": [SECRET]})
    assert "text" in traces(store)
    plan = plan_purge(store, ["secret/doc"])
    assert (plan.held_by, plan.lost_run) == ((), "killed")
    purge_documents(store, plan, lease=take_lease(store), run_id="purge")
    assert traces(store) == set()
    assert store.pointer().staged is None
    assert read_contents(store.open_snapshot()) == KEPT


def test_tags_do_not_keep_it(store: FeatureStore) -> None:
    publish(store, KEPT | {"secret/doc": [SECRET]})
    for table in store.open_tables().values():
        table.dataset.tags.create("by-hand", table.version)
    purge_documents(store, plan_purge(store, ["secret/doc"]), lease=take_lease(store), run_id="purge")
    assert traces(store) == set()


def test_what_cannot_be_removed_is_not_passed_over(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, KEPT | {"secret/doc": [SECRET]})
    monkeypatch.setattr(Table, "remove_versions", lambda self, versions: 0)
    with pytest.raises(StoreError, match="could not be removed"):
        purge_documents(store, plan_purge(store, ["secret/doc"]), lease=take_lease(store), run_id="purge")
    monkeypatch.undo()
    publish(store, {"kept1": ["later"]})
    assert "text" in traces(store)


def test_unknown_documents_are_named(store: FeatureStore) -> None:
    with pytest.raises(StoreNotFound):
        plan_purge(store, ["x"])
    publish(store, KEPT)
    with pytest.raises(NotFoundError, match="nowhere"):
        plan_purge(store, ["kept1", "nowhere"])


def test_planning_changes_nothing(store: FeatureStore) -> None:
    publish(store, KEPT)
    before = store.pointer()
    plan_purge(store, ["kept1"])
    assert store.pointer() == before
