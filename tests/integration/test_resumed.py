"""What a killed run has deleted or added comes out as the sources are when it is continued, not as they were."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lodestream.pipeline import refresh
from lodestream.pipeline.config.settings import load_config
from lodestream.pipeline.report import RunReport
from lodestream.storage import steps
from lodestream.storage.store import FeatureStore

NOTES = (
    "sources.notes.kind=sqlite", "sources.notes.path=notes.db", "sources.notes.table=notes",
    "sources.notes.text_column=body", "sources.notes.log_table=changes",
)  # fmt: skip
SCHEMA = """
CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT);
CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, id);
CREATE TRIGGER added AFTER INSERT ON notes BEGIN INSERT INTO changes (id) VALUES (NEW.id); END;
CREATE TRIGGER edited AFTER UPDATE ON notes BEGIN INSERT INTO changes (id) VALUES (OLD.id), (NEW.id); END;
CREATE TRIGGER gone AFTER DELETE ON notes BEGIN INSERT INTO changes (id) VALUES (OLD.id); END;
INSERT INTO notes VALUES (1, 'The night train to Vienna leaves at nine.');
"""


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def change(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / "notes.db")
    connection.executescript(statement)
    connection.commit()
    connection.close()


def write_rows(path: Path, row_id: str) -> None:
    pq.write_table(pa.table({"id": [row_id], "text": [f"The row {row_id} of a file of rows."]}), path)
    os.utime(path, (1.7e9, 1.7e9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("docs", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(f"A page of the {name} on the tides.\n")
    change(tmp_path, SCHEMA)
    return tmp_path


def run(folder: Path, *settings: str) -> RunReport:
    overrides = ("run.executor=local", "sources.other.path=other", "sources.docs.path=docs", *settings)
    return refresh.run(load_config(start=folder, overrides=overrides, environ={}))


def kill(folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> None:
    """A run that is killed after its last chunk was staged."""

    def reach(step: str) -> None:
        if step == "publish.synced":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(steps, "reach", reach)
        with pytest.raises(Killed):
            run(folder, *settings)
    assert FeatureStore.open(str(folder / ".lodestream")).pointer().staged is not None


def list_documents(folder: Path) -> list[str]:
    states = FeatureStore.open(str(folder / ".lodestream")).open_snapshot().document_states()
    return sorted(states.column("doc_id").to_pylist())


def read_text(folder: Path, doc_id: str) -> str:
    document = FeatureStore.open(str(folder / ".lodestream")).open_snapshot().get_document(doc_id)
    assert document is not None
    return str(document["text"])


def test_source_that_was_left_out_by_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, *NOTES)
    before = list_documents(folder)
    kill(folder, monkeypatch)
    run(folder, *NOTES)
    assert list_documents(folder) == before and len(before) == 3


def test_row_that_only_the_killed_run_has_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, *NOTES)
    before = list_documents(folder)
    change(folder, "INSERT INTO notes VALUES (2, 'Pay the coal merchant soon.')")
    kill(folder, monkeypatch, *NOTES)
    change(folder, "DELETE FROM notes WHERE id = 2")
    assert run(folder, *NOTES).snapshot_after == 2
    assert list_documents(folder) == before


@pytest.mark.parametrize("body", ["Pay the coal merchant late.", "Pay the coal merchant twice, and soon."])
def test_row_that_was_changed_since_the_killed_run_read_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """The log of a table has no versions of rows: only their hashes tell, also of texts of one length."""
    run(folder, *NOTES)
    change(folder, "INSERT INTO notes VALUES (2, 'Pay the coal merchant soon.')")
    kill(folder, monkeypatch, *NOTES)
    change(folder, f"UPDATE notes SET body = '{body}' WHERE id = 2")
    assert run(folder, *NOTES).as_dict()["documents"]["resumed"] == 0
    assert read_text(folder, "notes/2") == body


def test_file_that_was_changed_under_its_time_since_the_killed_run_read_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, *NOTES)
    path = folder / "docs" / "b.md"
    for text in ("The ferry sails at noon.", "The ferry sails at dusk."):
        path.write_text(text)
        os.utime(path, (1.7e9, 1.7e9))
        if text.endswith("noon."):
            kill(folder, monkeypatch, *NOTES)
    run(folder, *NOTES)
    assert read_text(folder, "docs/b.md") == text


def test_file_of_rows_that_only_the_killed_run_has_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is gone the folder is as it was published, and its source has nothing to say."""
    rows = ("sources.rows.kind=parquet", "sources.rows.path=rows")
    (folder / "rows").mkdir()
    write_rows(folder / "rows" / "a.parquet", "a")
    run(folder, *rows)
    before = list_documents(folder)
    write_rows(folder / "rows" / "b.parquet", "b")
    kill(folder, monkeypatch, *rows)
    (folder / "rows" / "b.parquet").unlink()
    run(folder, *rows)
    assert list_documents(folder) == before


def test_source_that_only_the_killed_run_has_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder)
    before = list_documents(folder)
    kill(folder, monkeypatch, *NOTES)
    run(folder)
    assert list_documents(folder) == before
