"""Every kind of damage is planted in a store, found, named, and mended where that is promised."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lodestream.errors import StoreCorrupt
from lodestream.storage.findings import Verification
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage
from lodestream.storage.repair import Repair, repair_store
from lodestream.storage.snapshot import open_register
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.verify import verify_store
from tests.support.store_rows import (
    DIM,
    begin,
    leave_unfinished,
    make_documents,
    make_features,
    publish,
    read_contents,
    take_lease,
)

CONTENTS = {f"d{number}": ["alpha", f"beta{number}", "gamma"] for number in range(8)}
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore.open_or_create(tmp_path / "store", dim=DIM)
    publish(store, {name: texts for name, texts in CONTENTS.items() if name < "d4"})
    publish(store, {name: texts for name, texts in CONTENTS.items() if name >= "d4"})
    assert verify(store).findings == verify(store, deep=False).findings == ()
    return store


def verify(store: FeatureStore, *, deep: bool = True) -> Verification:
    return verify_store(store.location, deep=deep, sweep_after=DAY)


def repair(store: FeatureStore, found: Verification) -> Repair:
    return repair_store(store, found, lease=take_lease(store), run_id="repair", sweep_after=DAY)


def kinds(found: Verification) -> set[str]:
    return {finding.kind for finding in found.findings}


def only_file(folder: Path, containing: bytes = b"") -> Path:
    [path] = [path for path in folder.rglob("*") if path.is_file() and containing in path.read_bytes()]
    return path


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def plant(store: FeatureStore, change: Callable[[dict[str, Table]], dict[str, Table]]) -> None:
    """Publishes tables past every check, as a defect or another program would."""
    register = open_register(store.location)
    found = register.read()
    assert found is not None
    pointer = store.pointer()
    tables = {name: table.version for name, table in change(store.open_tables()).items()}
    history = [*found[0]["history"][:-1], {**found[0]["history"][-1], "tables": tables}]
    register.cas(found[1], {**found[0], "tables": tables, "history": history, "nonce": pointer.nonce + "x"})


def append(table: Table, rows: pa.Table) -> Table:
    lance.write_dataset(rows, str(table.path), mode="append")
    return Table.open(table.path, table.schema, version=table.head_version)


def test_a_flipped_bit_of_a_vector(store: FeatureStore) -> None:
    """The files have no check of their own for vectors; one bit of one sentence shows in its document's checksum."""
    row = make_features({"d2": ["beta2"]}).to_pylist()[0]
    codes = bytes(code % 256 for code in row["codes"])
    path = only_file(store.root / "features.lance" / "data", codes)
    flip(path, path.read_bytes().index(codes) + 3)
    assert kinds(verify(store, deep=False)) == set()
    found = verify(store)
    assert [(finding.kind, finding.doc_ids) for finding in found.drift] == [("features-altered", ("d2",))]
    done = repair(store, found)
    assert (done.to_compute, done.left) == (("d2",), ())
    assert read_contents(store.open_snapshot()) == {name: texts for name, texts in CONTENTS.items() if name != "d2"}
    assert store.pointer().checkpoint == {}
    publish(store, {"d2": CONTENTS["d2"]})
    assert read_contents(store.open_snapshot()) == CONTENTS
    assert verify(store).findings == ()


def test_a_flipped_bit_of_the_text(store: FeatureStore) -> None:
    path = only_file(store.root / "documents.lance" / "data", b"beta5")
    flip(path, path.read_bytes().index(b"beta5"))
    found = verify(store)
    assert [(finding.kind, finding.doc_ids) for finding in found.drift] == [("text-altered", ("d5",))]
    assert repair(store, found).to_compute == ("d5",)
    assert verify(store).findings == ()


def test_damage_is_not_passed_on_by_merging(store: FeatureStore) -> None:
    """A checksum of the files would be made anew of what was read, and vouch for it."""
    row = make_features({"d2": ["beta2"]}).to_pylist()[0]
    codes = bytes(code % 256 for code in row["codes"])
    path = only_file(store.root / "features.lance" / "data", codes)
    flip(path, path.read_bytes().index(codes))
    collect_garbage(store, UpkeepOptions(), lease=take_lease(store), run_id="gc")
    assert [finding.doc_ids for finding in verify(store).drift] == [("d2",)]


@pytest.mark.parametrize("table", ["features", "documents"])
@pytest.mark.parametrize("damage", ["gone", "cut", "torn"])
def test_a_data_file(store: FeatureStore, table: str, damage: str) -> None:
    path = only_file(store.root / f"{table}.lance" / "data", b"d5" if table == "features" else b"beta5")
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-40] + b"\x07" * 40)
        assert path.stat().st_size == size
    found = verify(store, deep=False)
    assert f"file-{damage}" in kinds(found)
    assert any(path.name in finding.what for finding in found.drift)
    done = repair(store, found)
    assert done.left == ()
    assert set(done.to_compute) | set(done.dropped) == {"d4", "d5", "d6", "d7"}
    assert read_contents(store.open_snapshot()).keys() == {"d0", "d1", "d2", "d3"}
    publish(store, {name: texts for name, texts in CONTENTS.items() if name >= "d4"})
    assert read_contents(store.open_snapshot()) == CONTENTS
    assert verify(store).findings == ()


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_index_file(store: FeatureStore, *, is_gone: bool) -> None:
    indexes = store.open_tables()["features"].dataset.describe_indices()
    used = {segment.uuid for index in indexes for segment in index.segments}
    for folder in (store.root / "features.lance" / "_indices").iterdir():
        if folder.name in used:
            path = folder / "page_data.lance"
            path.unlink() if is_gone else path.write_bytes(b"\x00" * path.stat().st_size)
    found = verify(store)
    assert kinds(found) >= {"index-wrong", *(["file-cut"] if is_gone else [])}
    assert kinds(verify(store, deep=False)) == ({"file-cut"} if is_gone else set())
    assert {finding.mend for finding in found.drift} == {"rebuild indexes"}
    done = repair(store, found)
    assert (done.rebuilt, done.to_compute, done.left) == (True, (), ())
    assert store.open_snapshot().get_features("d3").num_rows == 4
    assert verify(store).findings == ()


def test_an_index_that_answers_wrong(store: FeatureStore) -> None:
    """Rows that are in the files and that no look-up finds."""
    plant(store, lambda tables: tables | {"features": _misindex(tables["features"])})
    found = verify(store)
    assert "index-wrong" in kinds(found)
    assert verify(store, deep=False).findings == ()
    assert repair(store, found).left == ()


def _misindex(table: Table) -> Table:
    """Puts the index of an emptied column in place of the real one, by swapping the pages of two index folders."""
    indexes = {index.field_names[0]: index for index in table.dataset.describe_indices()}
    key, doc_id = (table.path / "_indices" / str(indexes[name].segments[0].uuid) for name in ("key", "fingerprint"))
    for name in ("page_data.lance", "page_lookup.lance"):
        first, second = (key / name).read_bytes(), (doc_id / name).read_bytes()
        (key / name).write_bytes(second)
        (doc_id / name).write_bytes(first)
    return table


def test_a_key_that_comes_twice(store: FeatureStore) -> None:
    rows = make_features({"d1": ["beta1"]}).slice(0, 1)
    plant(store, lambda tables: tables | {"features": append(tables["features"], rows)})
    found = verify(store, deep=False)
    assert kinds(found) == {"duplicate-key", "rows-missing"}
    assert {finding.doc_ids for finding in found.drift} == {("d1",)}
    assert repair(store, found).to_compute == ("d1",)
    assert verify(store).findings == ()


def test_features_without_a_document(store: FeatureStore) -> None:
    rows = make_features({"stray": ["x", "y"]})
    plant(store, lambda tables: tables | {"features": append(tables["features"], rows)})
    found = verify(store, deep=False)
    assert [(finding.kind, finding.doc_ids) for finding in found.drift] == [("orphan-features", ("stray",))]
    done = repair(store, found)
    assert (done.dropped, done.to_compute, done.left) == (("stray",), (), ())
    assert read_contents(store.open_snapshot()) == CONTENTS


def test_a_document_without_features(store: FeatureStore) -> None:
    plant(
        store,
        lambda tables: (
            tables
            | {
                "features": tables["features"].replace_documents(
                    pa.array(["d6"]), tables["features"].schema.empty_table()
                )
            }
        ),
    )
    found = verify(store, deep=False)
    assert [(finding.kind, finding.doc_ids) for finding in found.drift] == [("rows-missing", ("d6",))]
    assert repair(store, found).to_compute == ("d6",)


def test_a_quarantined_document_needs_no_features(store: FeatureStore) -> None:
    transaction = begin(store)
    transaction.write_chunk(
        features=make_features({}),
        documents=make_documents({"bad": []}, quarantine_reason="not text"),
        deleted_doc_ids=(),
        keep_features_of=["bad"],
    )
    transaction.publish(checkpoint={}, run={})
    assert verify(store).findings == ()


def test_a_state_without_a_document(store: FeatureStore) -> None:
    """The next run would take the source for unchanged, and the document would never be computed."""
    plant(
        store,
        lambda tables: (
            tables
            | {
                name: tables[name].replace_documents(pa.array(["d6"]), tables[name].schema.empty_table())
                for name in ("features", "documents")
            }
        ),
    )
    found = verify(store, deep=False)
    assert [(finding.kind, finding.doc_ids) for finding in found.drift] == [("orphan-state", ("d6",))]
    assert repair(store, found).to_compute == ("d6",)
    assert store.open_tables()["source_state"].count(pc.field("doc_id") == "d6") == 0


def test_a_span_outside_its_text(store: FeatureStore) -> None:
    rows = make_features({"d3": CONTENTS["d3"]})
    ends = pa.array([5, 999, 5, 9], pa.int32())
    rows = rows.set_column(rows.schema.get_field_index("char_end"), rows.schema.field("char_end"), ends)
    plant(store, lambda tables: tables | {"features": tables["features"].replace_documents(pa.array(["d3"]), rows)})
    found = verify(store, deep=False)
    assert [(finding.kind, finding.doc_ids) for finding in found.drift] == [("span-outside", ("d3",))]
    assert repair(store, found).to_compute == ("d3",)


def test_debris_is_a_note_until_it_is_old(store: FeatureStore) -> None:
    leave_unfinished(store, {"staged": ["x"]}, run_id="killed")
    junk = store.root / "features.lance" / "data" / "junk.lance"
    junk.write_bytes(b"x" * 100)
    found = verify(store)
    assert kinds(found) == {"debris", "unfinished-run"}
    assert found.drift == ()
    long_ago = time.time() - 2 * DAY.total_seconds()
    os.utime(junk, (long_ago, long_ago))
    found = verify(store)
    assert [finding.kind for finding in found.drift] == ["debris"]
    done = repair(store, found)
    assert (done.num_swept, done.lost_run, done.left) == (1, "killed", ())
    assert not junk.exists()


def test_a_torn_pointer(store: FeatureStore) -> None:
    newest = sorted((store.root / "pointer").glob("*.json"))[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    found = verify(store)
    assert [finding.kind for finding in found.drift] == ["pointer-torn"]
    assert newest.name in found.drift[0].what


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_version_that_cannot_be_opened(store: FeatureStore, *, is_gone: bool) -> None:
    version = store.open_tables()["documents"].version
    manifest = store.root / "documents.lance" / "_versions" / f"{2**64 - 1 - version}.manifest"
    manifest.unlink() if is_gone else manifest.write_bytes(b"\x00" * manifest.stat().st_size)
    found = verify(store)
    assert "version-gone" in kinds(found)
    with pytest.raises(StoreCorrupt, match="cannot be opened"):
        repair(store, found)


def test_documents_of_a_migrated_store_are_sealed(store: FeatureStore) -> None:
    def unseal(table: Table) -> Table:
        rows = table.read(table.schema.names)
        for name in ("text_checksum", "features_checksum"):
            at = rows.schema.get_field_index(name)
            rows = rows.set_column(at, rows.schema.field(name), pa.nulls(rows.num_rows, rows.schema.field(name).type))
        return table.replace_documents(rows["doc_id"].combine_chunks(), rows)

    plant(store, lambda tables: tables | {"documents": unseal(tables["documents"])})
    found = verify(store)
    assert kinds(found) == {"unsealed"}
    assert found.drift == ()
    assert repair(store, found).num_sealed == len(CONTENTS)
    assert verify(store).findings == ()
    assert read_contents(store.open_snapshot()) == CONTENTS
