"""Delta and Lance tables as sources: what a version changed, and what has all rows compared."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lance
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from lodestream.errors import SourceContract
from lodestream.pipeline.config.settings import load_config
from lodestream.pipeline.sources.catalog import open_source
from lodestream.pipeline.sources.protocol import Source
from tests.support.known import Follower


class Table(Protocol):
    """A table that a test writes."""

    kind: str
    path: Path

    def append(self, rows: Mapping[Any, str | None]) -> None: ...
    def update(self, row_id: int, text: str) -> None: ...
    def delete(self, *row_ids: int) -> None: ...
    def overwrite(self, rows: Mapping[Any, str | None]) -> None: ...
    def compact(self) -> None: ...


def as_table(rows: Mapping[Any, str | None]) -> pa.Table:
    return pa.table({"id": list(rows), "text": pa.array(list(rows.values()), pa.string())})


class DeltaWriter:
    kind = "delta"

    def __init__(self, path: Path, *, feed: bool) -> None:
        self.path = path
        self._settings = {"delta.enableChangeDataFeed": "true"} if feed else {}

    def append(self, rows: Mapping[Any, str | None]) -> None:
        write_deltalake(self.path, as_table(rows), mode="append", configuration=self._settings)

    def update(self, row_id: int, text: str) -> None:
        DeltaTable(self.path).update(new_values={"text": text}, predicate=f"id = {row_id}")

    def delete(self, *row_ids: int) -> None:
        DeltaTable(self.path).delete(f"id in ({', '.join(map(str, row_ids))})")

    def overwrite(self, rows: Mapping[Any, str | None]) -> None:
        write_deltalake(self.path, as_table(rows), mode="overwrite", configuration=self._settings)

    def compact(self) -> None:
        DeltaTable(self.path).optimize.compact()


class LanceWriter:
    kind = "lance"

    def __init__(self, path: Path, *, feed: bool) -> None:
        self.path = path
        self._feed = feed

    def append(self, rows: Mapping[Any, str | None]) -> None:
        if self.path.exists():
            lance.write_dataset(as_table(rows), self.path, mode="append")
        else:
            lance.write_dataset(as_table(rows), self.path, enable_stable_row_ids=self._feed)

    def update(self, row_id: int, text: str) -> None:
        lance.dataset(self.path).update({"text": f"'{text}'"}, where=f"id = {row_id}")

    def delete(self, *row_ids: int) -> None:
        lance.dataset(self.path).delete(f"id in ({', '.join(map(str, row_ids))})")

    def overwrite(self, rows: Mapping[Any, str | None]) -> None:
        lance.write_dataset(as_table(rows), self.path, mode="overwrite", enable_stable_row_ids=self._feed)

    def compact(self) -> None:
        lance.dataset(self.path).optimize.compact_files()


WRITERS = {
    "delta, feed": lambda path: DeltaWriter(path, feed=True),
    "delta": lambda path: DeltaWriter(path, feed=False),
    "lance, stable ids": lambda path: LanceWriter(path, feed=True),
    "lance": lambda path: LanceWriter(path, feed=False),
}


@pytest.fixture(params=WRITERS)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    made: Table = WRITERS[request.param](tmp_path / "table")
    made.append({i: f"text {i}" for i in range(20)})
    return made


def open_table(table: Table, **settings: str) -> Source:
    values = {"kind": table.kind, "uri": str(table.path), **settings}
    overrides = [f"sources.lake.{name}={value}" for name, value in values.items()]
    return open_source(load_config(start=table.path.parent, overrides=overrides, environ={}), "lake")


def test_follows_appends_updates_deletes_and_overwrites(table: Table) -> None:
    follower = Follower(open_table(table))
    follower.refresh()
    wanted: dict[str, str] = {str(i): f"text {i}" for i in range(20)}
    assert follower.texts == wanted
    again = follower.refresh()
    assert again.num_seen == 0 and again.listed is None and not again.upserts
    table.append({20: "näw", 21: None})
    table.update(3, "changed")
    table.update(3, "changed again")
    table.delete(4, 5)
    table.append({5: "back"})
    follower.refresh()
    wanted |= {"20": "näw", "21": "", "3": "changed again", "5": "back"}
    del wanted["4"]
    assert follower.texts == wanted and follower.num_read == 4
    table.compact()
    follower.refresh()
    assert follower.texts == wanted and follower.num_read == 0
    table.overwrite({1: "text 1", 30: "new"})
    follower.refresh()
    assert follower.texts == {"1": "text 1", "30": "new"} and follower.num_read == 1


def test_the_feed_looks_at_what_changed_only(tmp_path: Path) -> None:
    for name in ("delta, feed", "lance, stable ids"):
        table = WRITERS[name](tmp_path / name.partition(",")[0])
        table.append({i: f"text {i}" for i in range(20)})
        follower = Follower(open_table(table))
        assert follower.refresh().observations.mode == "scan"
        table.update(7, "changed")
        changes = follower.refresh()
        assert (changes.observations.mode, changes.num_seen) == ("feed", 1), name


def test_a_feed_whose_files_are_gone_has_all_rows_compared(tmp_path: Path) -> None:
    table = DeltaWriter(tmp_path / "table", feed=True)
    table.append({i: f"text {i}" for i in range(5)})
    follower = Follower(open_table(table))
    follower.refresh()
    table.update(1, "changed")
    shutil.rmtree(tmp_path / "table" / "_change_data")
    assert follower.refresh().observations.mode == "scan"
    assert follower.texts["1"] == "changed" and follower.num_read == 1


def test_a_lance_version_that_was_cleaned_up_has_all_rows_compared(tmp_path: Path) -> None:
    from datetime import timedelta

    table = LanceWriter(tmp_path / "table", feed=True)
    table.append({1: "one"})
    follower = Follower(open_table(table))
    follower.refresh()
    table.append({2: "two"})
    lance.dataset(table.path).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    assert follower.refresh().observations.mode == "scan"
    assert follower.texts == {"1": "one", "2": "two"}


def test_a_table_made_anew_is_compared_in_full(table: Table) -> None:
    follower = Follower(open_table(table))
    follower.refresh()
    shutil.rmtree(table.path)
    table.append({1: "of the new table"})
    table.append({2: "text 2"})
    follower.refresh()
    assert follower.texts == {"1": "of the new table", "2": "text 2"}


def test_documents_to_try_again_are_named(table: Table) -> None:
    table.append({50: "\x01" * 40})
    follower = Follower(open_table(table))
    follower.refresh()
    assert "control characters" in follower.failures["50"]
    assert [candidate.doc_id for candidate in follower.refresh(retry={"50", "77"}).upserts] == ["50"]


def test_rows_are_read_from_the_version_in_which_they_were_found(table: Table) -> None:
    source = open_table(table)
    candidates = source.changes(None, Follower(source).known).upserts
    table.overwrite({1: "another"})
    reader = pickle.loads(pickle.dumps(source.reader()))
    bodies = {candidate.doc_id: body.text for candidate, body in zip(candidates, reader.read(candidates), strict=True)}
    assert bodies == {str(i): f"text {i}" for i in range(20)}


def test_what_is_missing_is_named(table: Table) -> None:
    source = open_table(table, text_column="body")
    with pytest.raises(SourceContract, match="no column body; there is id, text"):
        source.check()
    assert open_table(table).check().level == "pass"
    shutil.rmtree(table.path)
    with pytest.raises(SourceContract, match="there is no (Delta|Lance) table at"):
        open_table(table).check()


def test_an_id_that_comes_twice_stops_the_run(table: Table) -> None:
    table.append({1: "twice"})
    source = open_table(table)
    with pytest.raises(SourceContract, match="the id '1' comes more than once"):
        source.changes(None, Follower(source).known)
