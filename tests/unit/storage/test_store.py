from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import (
    ConfigError,
    NotFoundError,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    StoreSchemaMismatch,
    StoreUnwritable,
)
from lodestream.schema import SCHEMA_VERSION
from lodestream.storage import store as store_module
from lodestream.storage.snapshot import PointerRecord, Retention, open_register
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import DIM, begin, publish, read_contents, write

KEPT = Retention().keep_snapshots


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)


def change_pointer(store: FeatureStore, **changes: Any) -> None:
    register = open_register(store.root)
    found = register.read()
    assert found is not None
    register.cas(found[1], PointerRecord.from_json(found[0]).follow(**changes).to_json())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="lodestream run"):
        FeatureStore.open(str(tmp_path / "store"))
    assert os.listdir(tmp_path) == []


def test_created_and_empty(store: FeatureStore) -> None:
    pointer = FeatureStore.open(str(store.root)).pointer()
    assert (pointer.sequence, pointer.dim, pointer.staged) == (0, DIM, None)
    with pytest.raises(StoreNotFound, match="nothing is published"):
        store.open_snapshot()


def test_created_once(store: FeatureStore) -> None:
    snapshot = publish(store, {"a": ["1"]})
    again = FeatureStore.open_or_create(str(store.root), dim=DIM)
    assert again.open_snapshot().sequence == snapshot.sequence


def test_two_create_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's pointer arrives between this one's tables and its pointer."""
    make_nonce = store_module.make_nonce

    def intrude() -> str:
        monkeypatch.setattr(store_module, "make_nonce", make_nonce)
        FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
        return make_nonce()

    monkeypatch.setattr(store_module, "make_nonce", intrude)
    store = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    assert read_contents(publish(store, {"a": ["1"]})) == {"a": ["1"]}


def test_pointer_lost(store: FeatureStore) -> None:
    """Tables with data are never taken for the leavings of an unfinished creation."""
    publish(store, {"a": ["1"]})
    shutil.rmtree(store.root / "pointer")
    with pytest.raises(StoreCorrupt, match="pointer"):
        FeatureStore.open_or_create(str(store.root), dim=DIM)


def test_other_width(store: FeatureStore) -> None:
    with pytest.raises(StoreSchemaMismatch, match=rf"width {DIM}.*width 384(.|\n)*store.uri"):
        FeatureStore.open_or_create(str(store.root), dim=384)


@pytest.mark.parametrize(
    ("version", "advice"),
    [(SCHEMA_VERSION + 1, "pip install"), (SCHEMA_VERSION - 1, "lodestream migrate"), (0, "store.uri")],
)
def test_other_schema_version(store: FeatureStore, version: int, advice: str) -> None:
    change_pointer(store, schema_version=version)
    with pytest.raises(StoreSchemaMismatch, match=advice):
        FeatureStore.open(str(store.root))
    with pytest.raises(StoreSchemaMismatch, match=advice):
        FeatureStore.open_or_create(str(store.root), dim=DIM)


def test_other_pointer_format(store: FeatureStore) -> None:
    register = open_register(store.root)
    found = register.read()
    assert found is not None
    register.cas(found[1], found[0] | {"format": 99, "nonce": "later"})
    with pytest.raises(StoreSchemaMismatch, match="pip install --upgrade"):
        FeatureStore.open(str(store.root))


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("notes")
    with pytest.raises(StoreNotFound, match="it is a file"):
        FeatureStore.open(str(tmp_path / "store"))
    with pytest.raises(StoreUnwritable, match="a file stands in the way"):
        FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    with pytest.raises(StoreUnwritable, match="a file stands in the way"):
        FeatureStore.open_or_create(str(tmp_path / "store" / "below"), dim=DIM)
    assert (tmp_path / "store").read_text() == "notes"


def test_torn_pointer(store: FeatureStore) -> None:
    newest = max((store.root / "pointer").iterdir())
    newest.write_bytes(newest.read_bytes()[:40])
    with pytest.raises(StoreCorrupt, match="move"):
        FeatureStore.open(str(store.root))


def test_missing_version_in_pointer(store: FeatureStore) -> None:
    tables = publish(store, {"a": ["1"]}).tables
    change_pointer(store, tables=tables | {"documents": 99})
    with pytest.raises(StoreCorrupt, match="documents"):
        begin(store)


def test_unknown_table_in_pointer(store: FeatureStore) -> None:
    tables = publish(store, {"a": ["1"]}).tables
    change_pointer(store, tables=tables | {"later": 1})
    with pytest.raises(StoreError, match="pip install --upgrade"):
        begin(store)


def test_snapshots_by_number(store: FeatureStore) -> None:
    for number in range(KEPT + 2):
        publish(store, {"a": [str(number)]})
    assert store.open_snapshot().sequence == KEPT + 2
    for sequence in range(3, KEPT + 3):
        snapshot = store.open_snapshot(sequence)
        assert snapshot.sequence == sequence
        assert read_contents(snapshot) == {"a": [str(sequence - 1)]}
    for sequence in (0, 2, KEPT + 3):
        with pytest.raises(NotFoundError, match="snapshots 3 to 12"):
            store.open_snapshot(sequence)


def test_store_moves_with_its_folder(store: FeatureStore, tmp_path: Path) -> None:
    publish(store, {"a": ["1"]})
    shutil.move(store.root, tmp_path / "elsewhere")
    moved = FeatureStore.open(str(tmp_path / "elsewhere"))
    assert read_contents(moved.open_snapshot()) == {"a": ["1"]}
    assert read_contents(publish(moved, {"b": ["2"]})) == {"a": ["1"], "b": ["2"]}


ODD_NAMES = [
    "sto're",
    "store with  spaces",
    "a+b=c&d",
    "(x),@;!$",
    "store é中",
    "store#?",
    "%41",
    'qu"ote\\',
    "a*b",
    "~x",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_folder_names(tmp_path: Path, name: str) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / name), dim=DIM)
    for number in range(3):
        publish(store, {"a": [str(number)]})
    assert read_contents(publish(store, {"b": ["2"]})) == {"a": ["2"], "b": ["2"]}
    assert read_contents(store.open_snapshot(1)) == {"a": ["0"]}
    assert read_contents(FeatureStore.open(store.root.as_uri()).open_snapshot(2)) == {"a": ["1"]}
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["new\nline", "tab\t", "rub\x7fout", "lone\udcff"])
def test_folder_names_that_lance_cannot_keep_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand there"):
        FeatureStore.open_or_create(str(tmp_path / name), dim=DIM)
    assert os.listdir(tmp_path) == []


def test_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore.open_or_create("store", dim=DIM)
    monkeypatch.chdir("/")
    assert read_contents(publish(store, {"a": ["1"]})) == {"a": ["1"]}


def test_pointer_is_json(store: FeatureStore) -> None:
    """Somebody with nothing but an editor can see what is published."""
    transaction = begin(store, run_id="r-7")
    write(transaction, {"a": ["1"]})
    transaction.publish(checkpoint={"files": "é"}, run={"seconds": 1.5})
    newest = max((store.root / "pointer").iterdir())
    record = json.loads(json.loads(newest.read_text())["body"])["record"]
    assert (record["run_id"], record["checkpoint"], record["run"]) == ("r-7", {"files": "é"}, {"seconds": 1.5})
