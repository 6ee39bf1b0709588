"""Files, a SQLite table and Parquet rows in one configuration, through the command line."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lodestream.pipeline.library import Library
from lodestream.storage.compaction import rebuild_indexes
from lodestream.storage.maintenance import begin_upkeep
from lodestream.storage.store import FeatureStore
from tests.support.workspace import assert_equal_stores, last_json, run_command

CONFIG = """
[sources.docs]
path = "docs"

[sources.notes]
kind = "sqlite"
path = "notes.db"
table = "notes"
text_column = "body"
text_format = "html"

[sources.rows]
kind = "parquet"
path = "rows"

[run]
executor = "local"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "lodestream.toml").write_text(CONFIG)
    (tmp_path / "docs" / "bread.md").write_text("# Bread\n\nSourdough needs flour, water and patience.\n")
    (tmp_path / "docs" / "volcano.html").write_text("<h1>Volcano</h1><p>Lava flows down the mountain.</p>")
    (tmp_path / "docs" / "latin.txt").write_bytes(b"caf\xe9")
    change_notes(
        tmp_path,
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)",
        "INSERT INTO notes VALUES (1, '<p>The night train to Vienna leaves at nine.</p>'), (2, '<p>Pay soon.</p>')",
    )
    write_rows(tmp_path, {"k1": "The heart pumps blood through arteries.", "k2": "Rust is a language with ownership."})
    return tmp_path


def change_notes(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "notes.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def write_rows(folder: Path, rows: dict[str, str]) -> None:
    pq.write_table(pa.table({"id": list(rows), "text": list(rows.values())}), folder / "rows" / "a.parquet")


def refresh(folder: Path) -> dict[str, Any]:
    done = run_command(folder, "refresh", "--json")
    assert done.returncode == 0, done.stderr
    return last_json(done)


def find(folder: Path, text: str) -> str:
    (hit,) = Library(FeatureStore.open(str(folder / ".lodestream"))).search(text, limit=1)
    return hit.doc_id


def test_a_version_of_all_kinds_of_texts_equals_a_fresh_build(folder: Path) -> None:
    """What is stored of a page or a row is cut by the rules that it was read by."""
    (folder / "docs" / "latin.txt").unlink()
    other = ("--set", "density.base_below=0.6")
    for arguments in (
        ("run",),
        ("versions", "add", "b", "--promote", *other),
        ("run", *other, "--set", "store.uri=new"),
    ):
        done = run_command(folder, *arguments)
        assert done.returncode == 0, done.stderr
    found, wanted = (FeatureStore.open(str(folder / name)).open_snapshot() for name in (".lodestream", "new"))
    assert found.version == "b"
    assert_equal_stores(found, wanted)


def test_documents_of_a_removed_source_go_after_a_repair(folder: Path) -> None:
    assert run_command(folder, "run").returncode == 0
    store = FeatureStore.open(str(folder / ".lodestream"))
    with store.open_lease("a repair") as lease:
        begin_upkeep(store, store.pointer(), "repair", lease).publish_rewritten(
            lambda _, table: rebuild_indexes(table), checkpoint={}
        )
    assert store.pointer().checkpoint == {}
    (folder / "lodestream.toml").write_text(CONFIG.replace("[sources.rows]", "[sources.more]"))
    documents = refresh(folder)["documents"]
    assert documents["deleted"] == 2 and documents["new"] == 2
    names = store.open_snapshot().document_states().column("doc_id").to_pylist()
    assert sorted(name for name in names if name.startswith(("rows/", "more/"))) == ["more/k1", "more/k2"]


def test_sources_of_three_kinds_are_followed_together(folder: Path) -> None:
    done = run_command(folder, "run", "--json")
    report = last_json(done)
    assert report["documents"]["new"] == 6 and report["documents"]["quarantined"] == 1
    (failed,) = report["quarantined"]
    assert failed["doc_id"] == "docs/latin.txt" and "set sources.docs.encoding" in failed["reason"]
    assert find(folder, "when does the train depart") == "notes/1"
    assert find(folder, "eruption of lava") == "docs/volcano.html"

    change_notes(
        folder, "UPDATE notes SET body = '<p>Penguins swim.</p>' WHERE id = 1", "DELETE FROM notes WHERE id = 2"
    )
    write_rows(folder, {"k1": "The heart pumps blood through arteries.", "k3": "Trains to Vienna run at night."})
    (folder / "docs" / "bread.md").unlink()
    found = refresh(folder)["documents"]
    assert (found["new"], found["changed"], found["deleted"]) == (1, 1, 3)
    assert find(folder, "when does the train depart") == "rows/k3"
    assert find(folder, "birds in the water") == "notes/1"

    (folder / "notes.db").rename(folder / "elsewhere.db")
    failed_run = run_command(folder, "refresh")
    assert failed_run.returncode == 1
    assert "sources.notes.path" in failed_run.stderr and "its features are kept" in failed_run.stderr
    assert find(folder, "birds in the water") == "notes/1"
    (folder / "elsewhere.db").rename(folder / "notes.db")
    again = refresh(folder)
    assert (again["documents"]["new"], again["documents"]["changed"], again["documents"]["deleted"]) == (0, 0, 0)
    assert again["segments"]["encoded"] == 0
