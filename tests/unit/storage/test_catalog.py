"""The documents of a snapshot: what is found, and which two snapshots share."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from lodestream.storage.catalog import Catalog
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import DIM, begin, make_documents, make_features, make_states


def publish(store: FeatureStore, names: list[str], *, run_id: str, deleted: list[str] | None = None) -> Catalog:
    contents = {name: [f"{name} {run_id}"] for name in names}
    transaction = begin(store, run_id=run_id)
    transaction.write_chunk(
        features=make_features(contents, run_id=run_id),
        documents=make_documents(contents, run_id=run_id),
        deleted_doc_ids=deleted or [],
        source_state=make_states(contents),
    )
    transaction.publish(checkpoint={}, run={})
    return Catalog.read(store.open_snapshot())


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(tmp_path / "store", dim=DIM)


def test_documents_are_found_by_name(store: FeatureStore) -> None:
    names = ["b", "a", "é", "z/1", "z/10", "z/2", "\U0001f600", "\uffee"]
    catalog = publish(store, names, run_id="r1")
    assert len(catalog) == len(names)
    for name in names:
        found = catalog.find(name)
        assert found is not None
        assert (found.doc_id, found.source, found.source_version) == (name, "files", "v1")
    assert len({entry.identity for name in names if (entry := catalog.find(name))}) == len(names)
    for name in ("", "aa", "z", "z/11", "zz", "\U0001f601"):
        assert catalog.find(name) is None


def test_identities_are_shared_by_what_was_not_written(store: FeatureStore) -> None:
    first = publish(store, ["a", "b", "c"], run_id="r1")
    second = publish(store, ["b", "d"], run_id="r2", deleted=["c"])
    assert [name for name in "abcd" if second.find(name)] == ["a", "b", "d"]
    assert first.find("a") == second.find("a")
    assert first.find("b") != second.find("b")
    mine, theirs = second.match(first)
    assert second.doc_ids.take(pa.array(mine)).to_pylist() == ["a"]
    assert first.doc_ids.take(pa.array(theirs)).to_pylist() == ["a"]
    again, _ = first.match(first)
    assert again.tolist() == [0, 1, 2]


def test_written_again_with_the_same_features_is_another_content(store: FeatureStore) -> None:
    first = publish(store, ["a"], run_id="r1")
    contents = {"a": ["a r1"]}
    transaction = begin(store, run_id="r2")
    transaction.write_chunk(
        features=make_features(contents, run_id="r2"),
        documents=make_documents(contents, run_id="r2"),
        deleted_doc_ids=[],
    )
    transaction.publish(checkpoint={}, run={})
    second = Catalog.read(store.open_snapshot())
    assert first.find("a") != second.find("a")  # its rows name the run that wrote them
    assert second.match(first)[0].tolist() == []


def test_a_snapshot_without_documents(store: FeatureStore) -> None:
    publish(store, ["a"], run_id="r1")
    empty = publish(store, [], run_id="r2", deleted=["a"])
    assert len(empty) == 0
    assert empty.find("a") is None
    assert empty.match(empty)[0].tolist() == []
