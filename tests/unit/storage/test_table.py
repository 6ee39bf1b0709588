from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lodestream.errors import CommitConflict, StoreCorrupt, StoreSchemaMismatch, StoreUnwritable
from lodestream.schema import DOCUMENTS_SCHEMA, features_schema
from lodestream.storage import table as table_module
from lodestream.storage.columns import conform_rows
from lodestream.storage.dataset import FILE_FORMAT
from lodestream.storage.table import Table
from tests.support.store_rows import DIM, make_documents, make_features

SCHEMA = features_schema(DIM)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.create(tmp_path / "features.lance", SCHEMA)


def replace(table: Table, contents: dict[str, list[str]], *, removed: tuple[str, ...] = ()) -> Table:
    ids = pa.array([*contents, *removed], pa.string())
    return table.replace_documents(ids, make_features(contents))


def read_sorted(table: Table) -> pa.Table:
    return table.read(SCHEMA.names).sort_by("key")


def test_schema_round_trip(table: Table) -> None:
    """Types, nulls, time zones and float16 bits come back exactly."""
    rows = make_features({"a": ["x", "y z"], "b": []})
    stored = replace(table, {"a": ["x", "y z"], "b": []})
    reopened = Table.open(table.path, SCHEMA, version=stored.version)
    assert read_sorted(reopened).schema.equals(SCHEMA, check_metadata=True)
    assert read_sorted(reopened).equals(rows.sort_by("key"))


def test_documents_round_trip(tmp_path: Path) -> None:
    rows = make_documents({"a\n'\"\\": ["naïve", "\x00 \U0001f600"], "": []}, quarantine_reason="why 'not'")
    table = Table.create(tmp_path / "documents.lance", DOCUMENTS_SCHEMA)
    stored = table.replace_documents(pa.array([], pa.string()), rows)
    assert stored.read(DOCUMENTS_SCHEMA.names).equals(rows)


def test_batches_in_other_column_order(table: Table) -> None:
    stored = replace(table, {"a": ["x"] * 30})
    batches = list(stored.scan(["codes", "doc_id"], batch_rows=8))
    assert [batch.schema.names for batch in batches] == [["codes", "doc_id"]] * len(batches)
    assert max(batch.num_rows for batch in batches) <= 8
    assert pa.Table.from_batches(batches)["codes"].type == SCHEMA.field("codes").type


def test_replacing_trims_vanished_rows(table: Table) -> None:
    stored = replace(table, {"a": ["1", "2", "3"], "b": ["4"], "c": ["5"]})
    stored = replace(stored, {"a": ["9"]}, removed=("c", "never there"))
    wanted = pa.concat_tables([make_features({"a": ["9"]}), make_features({"b": ["4"]})])
    assert read_sorted(stored).equals(wanted.sort_by("key"))


def test_nothing_to_do_makes_no_version(table: Table) -> None:
    stored = replace(table, {"a": ["1"]})
    assert replace(stored, {}, removed=("b",)).version == stored.version


def test_old_versions_stay_as_they_were(table: Table) -> None:
    first = replace(table, {"a": ["1"]})
    rows = read_sorted(first)
    replace(first, {"a": ["2"], "b": ["3"]}).tidy(("key", "doc_id"))
    assert read_sorted(first).equals(rows)
    assert read_sorted(Table.open(table.path, SCHEMA, version=first.version)).equals(rows)


def test_junk_of_another_writer_is_rolled_over(table: Table) -> None:
    base = replace(table, {"a": ["1"]})
    replace(base, {"a": ["junk"], "junk": ["junk"]})
    mine = replace(base, {"b": ["2"]})
    assert sorted(read_sorted(mine)["doc_id"].unique().to_pylist()) == ["a", "b"]
    assert mine.head_version == mine.version


def test_junk_that_arrives_during_the_commit(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lance would merge it in without a word."""
    base = replace(table, {"a": ["1"]})

    def intrude(step: str) -> None:
        if step == "chunk.files_written":
            monkeypatch.setattr(table_module.steps, "reach", lambda step: None)
            lance.write_dataset(make_features({"junk": ["junk"]}), str(table.path), mode="append")

    monkeypatch.setattr(table_module.steps, "reach", intrude)
    mine = replace(base, {"b": ["2"]})
    assert sorted(read_sorted(mine)["doc_id"].unique().to_pylist()) == ["a", "b"]


def test_gives_up_on_endless_junk(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(table, {"a": ["1"]})

    def intrude(step: str) -> None:
        lance.write_dataset(make_features({"junk": ["junk"]}), str(table.path), mode="append")

    monkeypatch.setattr(table_module.steps, "reach", intrude)
    with pytest.raises(CommitConflict, match="another process keeps writing"):
        replace(base, {"b": ["2"]})
    with pytest.raises(CommitConflict, match="another process keeps writing"):
        base.tidy(("key",))


@pytest.mark.parametrize("kind", ["append", "overwrite", "delete"])
def test_junk_that_arrives_while_tidying(table: Table, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    base = replace(table, {"a": ["1"], "b": ["2"]})

    def intrude(step: str) -> None:
        monkeypatch.setattr(table_module.steps, "reach", lambda step: None)
        if kind == "delete":
            lance.dataset(str(table.path)).delete("doc_id = 'a'")
        else:
            lance.write_dataset(make_features({"junk": ["junk"]}), str(table.path), mode=kind)

    monkeypatch.setattr(table_module.steps, "reach", intrude)
    tidied = base.tidy(("key", "doc_id"))
    assert read_sorted(tidied).equals(read_sorted(base))


def test_index_and_scan_agree_through_updates(table: Table) -> None:
    """A row that keeps its key and changes its fingerprint must leave the index under the old one."""
    stored = replace(table, {f"d{number}": ["same", str(number)] for number in range(40)})
    stored = stored.tidy(("key", "doc_id", "fingerprint"))
    for round_number in range(4):
        changed = {f"d{number}": [f"new {round_number}"] for number in range(round_number, 40, 5)}
        stored = replace(stored, changed, removed=(f"d{round_number + 20}",))
        for current in (stored, stored.tidy(("key", "doc_id", "fingerprint"))):
            for name in ("doc_id", "fingerprint"):
                for value in current.read([name], with_index=False)[name].unique():
                    where = pc.field(name) == value
                    found = current.read(["key"], where=where)
                    wanted = current.read(["key"], where=where, with_index=False)
                    assert sorted(found["key"].to_pylist()) == sorted(wanted["key"].to_pylist())


def test_versions_by_number(table: Table) -> None:
    stored = replace(replace(table, {"a": ["1"]}), {"a": ["2"]})
    assert sorted(stored.list_versions()) == list(range(1, stored.version + 1))
    assert all(datetime.now(UTC) - made_at < timedelta(minutes=5) for made_at in stored.list_versions().values())


def test_removed_versions_are_gone_and_no_others(table: Table) -> None:
    kept = replace(table, {"a": ["1"], "b": ["0"]})
    stored = kept
    for number in range(8):
        stored = replace(stored, {"a": [str(number)]})
    removed = set(range(kept.version + 1, stored.version - 1))
    assert stored.remove_versions(removed | {stored.version}) > 0
    assert read_sorted(Table.open(table.path, SCHEMA, version=kept.version)).num_rows == 4
    assert read_sorted(Table.open(table.path, SCHEMA, version=stored.version - 1)).num_rows == 4
    for version in removed:
        with pytest.raises(StoreCorrupt):
            Table.open(table.path, SCHEMA, version=version)
    assert stored.remove_versions(removed) == 0 == stored.remove_versions(set())
    assert read_sorted(replace(stored, {"b": ["9"]}))["doc_id"].to_pylist().count("b") == 2


def test_creating_twice(table: Table) -> None:
    assert Table.create(table.path, SCHEMA).version == 1
    replace(table, {"a": ["1"]})
    with pytest.raises(StoreCorrupt, match="pointer"):
        Table.create(table.path, SCHEMA)


def test_other_columns(table: Table) -> None:
    with pytest.raises(StoreSchemaMismatch):
        Table.open(table.path, features_schema(DIM + 1), version=1)
    with pytest.raises(StoreSchemaMismatch):
        Table.open(table.path, DOCUMENTS_SCHEMA, version=1)


def test_missing_version_and_table(table: Table, tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt, match="restore"):
        Table.open(table.path, SCHEMA, version=9)
    with pytest.raises(StoreCorrupt, match="is gone"):
        Table.open(tmp_path / "other.lance", SCHEMA, version=1)


def test_a_deferred_version_is_looked_for_at_once_and_opened_on_use(table: Table, tmp_path: Path) -> None:
    stored = replace(table, {"a": ["1"]})
    deferred = Table.defer(table.path, SCHEMA, version=stored.version)
    assert deferred.version == stored.version
    assert read_sorted(deferred).equals(read_sorted(stored))
    with pytest.raises(StoreCorrupt, match="version 9 of the table .* is gone"):
        Table.defer(table.path, SCHEMA, version=9)
    with pytest.raises(StoreCorrupt, match=r"other\.lance is gone"):
        Table.defer(tmp_path / "other.lance", SCHEMA, version=1)
    with pytest.raises(StoreSchemaMismatch):
        Table.defer(table.path, DOCUMENTS_SCHEMA, version=1).count()
    manifest = max((table.path / "_versions").glob("*.manifest"), key=lambda path: path.stat().st_mtime_ns)
    manifest.write_bytes(b"torn")
    torn = Table.defer(table.path, SCHEMA, version=stored.version)
    with pytest.raises(StoreCorrupt, match="restore"):
        torn.count()


@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_damaged_data_file(table: Table, damage: str) -> None:
    stored = replace(table, {"a": ["1"] * 500})
    (path,) = (table.path / "data").iterdir()
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with pytest.raises(StoreCorrupt, match="restore"):
        Table.open(table.path, SCHEMA, version=stored.version).read(SCHEMA.names)


def test_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "features.lance").write_text("not a folder")
    with pytest.raises(StoreUnwritable):
        Table.create(tmp_path / "features.lance", SCHEMA)


def test_conform_rows() -> None:
    rows = make_features({"a": ["1", "2"]})
    loose = pa.table({name: rows[name] for name in reversed(rows.column_names)})  # nulls allowed, other order
    assert not loose.schema.equals(SCHEMA)
    assert conform_rows(loose, SCHEMA).equals(rows)
    with pytest.raises(ValueError, match="wanted"):
        conform_rows(rows.drop_columns(["norm"]), SCHEMA)
    nulls = loose.set_column(loose.column_names.index("kind"), "kind", pa.array([None] * 3, pa.string()))
    with pytest.raises(ValueError, match="3 nulls"):
        conform_rows(nulls, SCHEMA)


def test_compressed_columns_stay_so(tmp_path: Path) -> None:
    """Lance keeps the encodings of the empty table in whatever is appended and compacted."""
    far_apart = pa.array([number % 2 * 1_000_000 for number in range(20_000)], pa.int32())
    rows = pa.table({"parent": far_apart}, schema=pa.schema([SCHEMA.field("parent")]))
    table = Table.create(tmp_path / "compressed.lance", rows.schema)
    for start in (0, 15_000):
        table = table.replace_documents(pa.array([], pa.string()), rows.slice(start, 15_000))
    plain = lance.write_dataset(rows, str(tmp_path / "plain.lance"), data_storage_version=FILE_FORMAT)
    lance.dataset(str(table.path)).optimize.compact_files()
    sizes = sorted(path.stat().st_size for path in (table.path / "data").iterdir())
    assert len(sizes) == 3
    [plain_size] = [path.stat().st_size for path in (Path(plain.uri) / "data").iterdir()]
    assert sizes[-1] < plain_size / 10
