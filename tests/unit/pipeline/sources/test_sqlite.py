"""A table of a SQLite file as a source: what each mode finds, and what is refused."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import SqliteSource
from lodestream.pipeline.sources.sqlite import SqliteTable
from lodestream.pipeline.sources.sqlite_query import write_log
from tests.support.known import Follower

MODES = {
    "log": {"log_table": "docs_log"},
    "lookback": {"updated_column": "updated_at"},
    "scan": {},
}


@pytest.fixture
def database(tmp_path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(tmp_path / "a file.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(
        "CREATE TABLE docs (id INTEGER PRIMARY KEY, body, updated_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
    )
    connection.execute(
        "CREATE TRIGGER stamp AFTER UPDATE ON docs BEGIN "
        "UPDATE docs SET updated_at = CURRENT_TIMESTAMP WHERE id = NEW.id; END"
    )
    connection.executescript(write_log(make_config(tmp_path, "log")))
    connection.executemany("INSERT INTO docs (id, body) VALUES (?, ?)", [(i, f"text {i}") for i in range(1, 31)])
    return connection


def make_config(folder: Path, mode: str, **settings: Any) -> SqliteSource:
    chosen = MODES.get(mode, {})
    values = {"kind": "sqlite", "path": str(folder / "a file.db"), "table": "docs", "text_column": "body"}
    return SqliteSource.model_validate({**values, "mode": mode, **chosen, **settings})


def open_table(folder: Path, mode: str, *, prefix_ids: bool = False, **settings: Any) -> SqliteTable:
    return SqliteTable("lite", make_config(folder, mode, **settings), folder, prefix_ids=prefix_ids)


def stored(database: sqlite3.Connection, text: str = "body") -> dict[str, str]:
    rows = database.execute(f"SELECT CAST(id AS TEXT), CAST(coalesce({text}, '') AS TEXT) FROM docs")
    return dict(rows.fetchall())


@pytest.mark.parametrize("mode", MODES)
def test_follows_inserts_updates_and_deletes(database: sqlite3.Connection, tmp_path: Path, mode: str) -> None:
    follower = Follower(open_table(tmp_path, mode, sweep_every="1ms"))
    first = follower.refresh()
    assert first.observations.mode == mode and follower.texts == stored(database)
    follower.source = open_table(tmp_path, mode)
    database.execute("UPDATE docs SET body = 'changed' WHERE id = 7")
    database.execute("UPDATE docs SET body = body WHERE id = 8")
    database.execute("INSERT INTO docs (id, body) VALUES (31, 'näw'), (32, NULL), (33, 5)")
    follower.refresh()
    assert follower.texts == stored(database)
    assert follower.num_read == 4
    database.execute("DELETE FROM docs WHERE id IN (1, 2)")
    database.execute("INSERT INTO docs (id, body) VALUES (2, 'back')")
    database.execute("UPDATE docs SET id = 100 WHERE id = 3")
    if mode == "lookback":
        time.sleep(0.01)
        follower.source = open_table(tmp_path, mode, sweep_every="1ms")
    follower.refresh()
    assert follower.texts == stored(database)
    follower.source = open_table(tmp_path, mode)
    assert not follower.refresh().upserts


@pytest.mark.parametrize("mode", ["log", "lookback"])
def test_a_row_of_an_open_transaction_is_found_when_it_ends(
    database: sqlite3.Connection, tmp_path: Path, mode: str
) -> None:
    follower = Follower(open_table(tmp_path, mode))
    follower.refresh()
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO docs (id, body) VALUES (40, 'late')")
    time.sleep(1.1)
    follower.refresh()
    assert "40" not in follower.texts
    database.execute("COMMIT")
    follower.refresh()
    assert follower.texts == stored(database)


def test_a_log_reads_what_changed_and_no_more(database: sqlite3.Connection, tmp_path: Path) -> None:
    follower = Follower(open_table(tmp_path, "log"))
    follower.refresh()
    assert follower.refresh().num_seen == 0
    database.execute("UPDATE docs SET body = 'new' WHERE id = 3")
    assert follower.refresh().num_seen == 1
    database.execute("DELETE FROM docs_log")
    assert follower.refresh().num_seen == 0, "what was read may be thrown away"
    database.execute("UPDATE docs SET body = 'newer' WHERE id = 3")
    database.execute("DELETE FROM docs_log")
    assert follower.refresh().listed is not None, "what was not read may not: everything is compared"
    assert follower.texts == stored(database)


def test_a_backup_put_back_in_place_is_compared_in_full(database: sqlite3.Connection, tmp_path: Path) -> None:
    backup = sqlite3.connect(tmp_path / "backup.db")
    database.backup(backup)
    follower = Follower(open_table(tmp_path, "log"))
    database.execute("UPDATE docs SET body = 'lost by the backup'")
    follower.refresh()
    backup.backup(database)
    assert follower.refresh().listed is not None
    assert follower.texts == stored(database)


@pytest.mark.parametrize("mode", MODES)
def test_after_the_clock_was_set_back_everything_is_compared(
    database: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    follower = Follower(open_table(tmp_path, mode))
    with monkeypatch.context() as ahead:
        ahead.setattr("lodestream.pipeline.sources.sqlite._CLOCK", f"SELECT {time.time() + 7200} AS now")
        follower.refresh()
    database.execute("UPDATE docs SET body = 'under the right clock' WHERE id = 2")
    database.execute("DELETE FROM docs WHERE id = 3")
    assert (follower.refresh().listed is not None) and follower.texts == stored(database)
    follower.refresh()
    assert follower.num_read == 0


def test_another_file_in_its_place_is_another_source(database: sqlite3.Connection, tmp_path: Path) -> None:
    before = open_table(tmp_path, "scan").incarnation()
    copy = sqlite3.connect(tmp_path / "copy.db")
    database.backup(copy)
    database.close()
    copy.close()
    (tmp_path / "copy.db").rename(tmp_path / "a file.db")
    assert open_table(tmp_path, "scan").incarnation() != before


@pytest.mark.parametrize(
    ("stamp", "is_in_window"),
    [
        ("datetime('now')", True),
        ("strftime('%Y-%m-%dT%H:%M:%f-05:00', 'now', '-5 hours')", True),
        ("unixepoch('now')", True),
        ("unixepoch('now') * 1000", True),
        ("'no time at all'", True),
        ("''", True),
        ("x'00'", True),
        ("datetime('now', '-2 hours')", False),
        ("unixepoch('now') - 7200", False),
    ],
)
def test_times_in_every_form_are_compared_as_times(
    database: sqlite3.Connection, tmp_path: Path, stamp: str, is_in_window: bool
) -> None:
    follower = Follower(open_table(tmp_path, "lookback"))
    follower.refresh()
    database.execute(f"INSERT INTO docs (id, body, updated_at) VALUES (50, 'x', {stamp})")
    follower.refresh()
    assert ("50" in follower.texts) is is_in_window
    follower.source = open_table(tmp_path, "lookback", sweep_every="1ms")
    time.sleep(0.01)
    assert follower.refresh().observations.num_swept == (not is_in_window)
    assert follower.texts == stored(database)


def test_a_row_of_the_future_is_taken_and_counted(database: sqlite3.Connection, tmp_path: Path) -> None:
    follower = Follower(open_table(tmp_path, "lookback"))
    database.execute("INSERT INTO docs (id, body, updated_at) VALUES (50, 'ahead', '2999-01-01')")
    assert follower.refresh().observations.num_future == 1
    database.execute("INSERT INTO docs (id, body) VALUES (51, 'now')")
    follower.refresh()
    assert follower.texts == stored(database)


def test_columns_of_mixed_types_and_nulls_first(database: sqlite3.Connection, tmp_path: Path) -> None:
    database.execute("CREATE TABLE mixed (id, body)")
    rows = [(i, None) for i in range(3000)] + [("a", "text"), (2.5, 7), ("3000", b"bytes"), (3001, b"\xff\xfe bad")]
    database.executemany("INSERT INTO mixed VALUES (?, ?)", rows)
    follower = Follower(open_table(tmp_path, "scan", table="mixed"))
    follower.refresh()
    assert {key: text for key, text in follower.texts.items() if text} == {"a": "text", "2.5": "7", "3000": "bytes"}
    assert "not utf-8" in follower.failures["3001"]
    database.execute("UPDATE mixed SET body = 'fine' WHERE id = 3001")
    follower.refresh(retry={"0", "a", "gone"})
    assert follower.texts["3001"] == "fine" and not follower.failures


def test_odd_names_stay_names(database: sqlite3.Connection, tmp_path: Path) -> None:
    database.execute('CREATE TABLE "a.b"" c" ("i d" TEXT PRIMARY KEY, "te;xt" TEXT)')
    database.execute("""INSERT INTO "a.b"" c" VALUES ('x''; DROP TABLE docs', 'y')""")
    source = open_table(tmp_path, "scan", table='a.b" c', id_column="i d", text_column="te;xt", prefix_ids=True)
    follower = Follower(source)
    follower.refresh()
    assert follower.texts == {"lite/x'; DROP TABLE docs": "y"}


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"table": "nope"}, "there is no table nope; there is docs, docs_log", "table"),
        ({"text_column": "nope"}, "no column nope; it has id, body, updated_at", "text_column"),
        ({"mode": "log"}, "no log_table is set", "CREATE TABLE"),
        ({"mode": "log", "log_table": "docs"}, "with the columns seq and id", "CREATE TABLE"),
        ({"mode": "lookback"}, "no updated_column is set", "updated_column"),
        ({"path": "nowhere.db"}, "does not exist", "path"),
    ],
)
@pytest.mark.usefixtures("database")
def test_what_is_missing_is_named(tmp_path: Path, settings: dict[str, str], message: str, hint: str) -> None:
    source = open_table(tmp_path, settings.pop("mode", "scan"), **{"log_table": "", "updated_column": "", **settings})
    with pytest.raises(SourceContract) as caught:
        source.changes(None, Follower(source).known)
    assert message in caught.value.message and hint in caught.value.hint


def test_a_log_that_would_lose_rows_is_refused(database: sqlite3.Connection, tmp_path: Path) -> None:
    database.execute("DROP TRIGGER docs_log_update")
    source = open_table(tmp_path, "auto", log_table="docs_log")
    with pytest.raises(SourceContract, match="no trigger on docs writes UPDATE into docs_log"):
        source.check()
    database.execute("DROP TABLE docs_log")
    database.execute("CREATE TABLE docs_log (seq INTEGER PRIMARY KEY, id)")
    with pytest.raises(SourceContract, match="not AUTOINCREMENT"):
        source.check()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a file.db").write_text("no database, but long enough to be looked at" * 10)
    with pytest.raises(SourceContract, match="file is not a database"):
        open_table(tmp_path, "scan").check()


@pytest.mark.usefixtures("database")
def test_check_says_which_mode_and_why(tmp_path: Path) -> None:
    assert "mode log: triggers write every change" in open_table(tmp_path, "auto", log_table="docs_log").check().detail
    assert "mode lookback" in open_table(tmp_path, "auto", updated_column="updated_at").check().detail
    assert "mode scan: every row" in open_table(tmp_path, "auto").check().detail


STATEMENTS = (
    "INSERT OR IGNORE INTO docs (id, body) VALUES (:id, :text)",
    "INSERT OR REPLACE INTO docs (id, body) VALUES (:id, :text)",
    "INSERT INTO docs (id, body) VALUES (:id, :text) ON CONFLICT (id) DO UPDATE SET body = :text",
    "UPDATE docs SET body = :text WHERE id = :id",
    "UPDATE OR IGNORE docs SET id = id + 1 WHERE id = :id",
    "DELETE FROM docs WHERE id = :id",
    "DELETE FROM docs_log",
    "ROLLBACK",
    "refresh",
)


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    events=st.lists(st.tuples(st.sampled_from(STATEMENTS), st.integers(1, 5), st.sampled_from("abc")), max_size=25)
)
def test_a_log_loses_nothing(database: sqlite3.Connection, tmp_path: Path, events: list[tuple[str, int, str]]) -> None:
    """Any statements, in transactions that end or are taken back, and any clearing of the log between refreshes."""
    follower = Follower(open_table(tmp_path, "log"))
    database.execute("BEGIN")
    for statement, row_id, text in events:
        if statement in ("refresh", "ROLLBACK"):
            database.execute("COMMIT" if statement == "refresh" else statement)
            follower.refresh()
            assert follower.texts == stored(database)
            database.execute("BEGIN")
        else:
            database.execute(statement, {"id": row_id, "text": text})
    database.execute("COMMIT")
    follower.refresh()
    assert follower.texts == stored(database)
