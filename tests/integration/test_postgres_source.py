"""A table of PostgreSQL as a source: what each mode finds, what it refuses, and what no mode may lose."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from lodestream.errors import SourceUnavailable
from lodestream.pipeline.sources import postgres_bounds, postgres_session
from tests.support.known import Follower
from tests.support.postgres import MODE_SETTINGS, make_table, open_table, stored, write
from tests.support.servers import Server

MODES = list(MODE_SETTINGS)
STAMPED = ["xid", "holdback", "lookback"]


@pytest.mark.parametrize("mode", MODES)
def test_follows_inserts_updates_and_deletes(postgres_url: str, mode: str) -> None:
    make_table(postgres_url, 50)
    follower = Follower(open_table(postgres_url, mode))
    first = follower.refresh()
    assert first.observations.mode == mode and first.listed is not None and len(first.upserts) == 50
    assert follower.texts == stored(postgres_url)
    write(
        postgres_url,
        "UPDATE docs SET body = 'changed' WHERE id = 7",
        "UPDATE docs SET body = body WHERE id = 8",
        "DELETE FROM docs WHERE id IN (9, 10)",
        "INSERT INTO docs (id, body) VALUES (10, 'back again'), (51, 'näw'), (52, NULL)",
    )
    follower.refresh()
    assert follower.texts == stored(postgres_url)
    assert follower.num_read == 4, "7, 10, 51 and 52; row 8 has the hash that is known"
    again = follower.refresh()
    assert not again.upserts and follower.num_read == 0


@pytest.mark.parametrize("mode", STAMPED)
def test_a_row_of_an_open_transaction_is_found_when_it_ends(postgres_url: str, mode: str) -> None:
    """The transaction begins before a refresh and ends after another: its stamps lie before both."""
    make_table(postgres_url, 5)
    follower = Follower(open_table(postgres_url, mode))
    follower.refresh()
    with psycopg.connect(postgres_url) as slow:
        slow.execute("INSERT INTO docs (id, body) VALUES (100, 'late')")
        write(postgres_url, "INSERT INTO docs (id, body) VALUES (101, 'early')")
        time.sleep(1.2)
        follower.refresh()
        assert "101" in follower.texts, "what is committed is not kept waiting"
        follower.refresh()
        assert "100" not in follower.texts
    follower.refresh()
    assert follower.texts == stored(postgres_url)


@pytest.mark.parametrize("mode", ["xid", "holdback"])
def test_a_transaction_without_a_number_yet_holds_the_cursor_back(postgres_url: str, mode: str) -> None:
    make_table(postgres_url, 1)
    follower = Follower(open_table(postgres_url, mode))
    with psycopg.connect(postgres_url) as slow:
        slow.execute("SELECT 1")  # begun, but nothing written
        time.sleep(1.2)
        follower.refresh()
        slow.execute("INSERT INTO docs (id, body) VALUES (2, 'late')")
        follower.refresh()
    follower.refresh()
    assert follower.texts == stored(postgres_url)


@pytest.mark.parametrize("mode", STAMPED)
def test_a_late_tombstone_is_found(postgres_url: str, mode: str) -> None:
    make_table(postgres_url, 3)
    follower = Follower(open_table(postgres_url, mode))
    follower.refresh()
    with psycopg.connect(postgres_url) as slow:
        slow.execute("DELETE FROM docs WHERE id = 2")
        time.sleep(1.2)
        follower.refresh()
        assert "2" in follower.texts
    follower.refresh()
    assert follower.texts == stored(postgres_url)


def test_lookback_shorter_than_a_transaction_loses_a_row_and_the_sweep_counts_it(postgres_url: str) -> None:
    make_table(postgres_url, 3)
    follower = Follower(open_table(postgres_url, "lookback", lookback="100ms", sweep_every="2s"))
    follower.refresh()
    with psycopg.connect(postgres_url) as slow:
        slow.execute("INSERT INTO docs (id, body) VALUES (100, 'late')")
        time.sleep(0.5)
        follower.refresh()
    follower.refresh()
    assert "100" not in follower.texts
    time.sleep(2)
    swept = follower.refresh()
    assert swept.observations.num_swept == 1 and swept.listed is not None
    assert follower.texts == stored(postgres_url)


def test_deletes_without_tombstones_show_in_the_sweep(postgres_url: str) -> None:
    make_table(postgres_url, 3)
    source = open_table(postgres_url, "xid", tombstone_table="", sweep_every="500ms")
    follower = Follower(source)
    follower.refresh()
    write(postgres_url, "DELETE FROM docs WHERE id = 1")
    time.sleep(0.6)
    assert follower.refresh().observations.num_swept == 0, "a delete is nothing that the cursor lost"
    assert follower.texts == stored(postgres_url)


def test_rows_of_the_future_are_taken_counted_and_do_not_move_the_cursor(postgres_url: str) -> None:
    make_table(postgres_url, 3)
    write(postgres_url, "ALTER TABLE docs DISABLE TRIGGER stamp")
    follower = Follower(open_table(postgres_url, "lookback"))
    follower.refresh()
    write(postgres_url, "INSERT INTO docs (id, body, updated_at) VALUES (4, 'ahead', now() + interval '10 years')")
    found = follower.refresh()
    assert found.observations.num_future == 1 and follower.texts["4"] == "ahead"
    write(
        postgres_url,
        "INSERT INTO docs (id, body, updated_at) VALUES (5, 'endless', 'infinity')",
        "INSERT INTO docs (id, body) VALUES (6, 'now')",
    )
    follower.refresh()
    assert follower.texts == stored(postgres_url)


@pytest.mark.parametrize("mode", ["holdback", "lookback"])
def test_after_the_clock_was_set_back_everything_is_compared(postgres_url: str, mode: str) -> None:
    make_table(postgres_url, rows=3)
    follower = Follower(open_table(postgres_url, mode))
    follower.refresh()
    # As if that refresh had come while the server's clock was two days ahead.
    ahead = {name: f"{datetime.now(UTC) + timedelta(days=2)}" for name in ("low", "swept_at")}
    follower.cursor = {**(follower.cursor or {}), **ahead}
    write(postgres_url, "UPDATE docs SET body = 'under the right clock' WHERE id = 2", "DELETE FROM docs WHERE id = 3")
    follower.refresh()
    assert follower.texts == stored(postgres_url)
    follower.refresh()
    assert follower.num_read == 0


def test_rows_without_a_stamp_are_found(postgres_url: str) -> None:
    make_table(postgres_url, 1)
    write(
        postgres_url,
        "ALTER TABLE docs DISABLE TRIGGER stamp",
        "ALTER TABLE docs ALTER updated_at DROP NOT NULL, ALTER updated_at DROP DEFAULT",
    )
    follower = Follower(open_table(postgres_url, "lookback"))
    follower.refresh()
    write(postgres_url, "INSERT INTO docs (id, body) VALUES (2, 'unstamped')")
    follower.refresh()
    assert follower.texts == stored(postgres_url)


def test_a_prepared_transaction_holds_the_cursor_back(postgres_server: Server) -> None:
    """Its start is nowhere to be read, so the cursor stays where it was before the transaction began."""
    write(postgres_server.url, "ALTER SYSTEM SET max_prepared_transactions = 5")
    postgres_server.stop()
    postgres_server.start()
    url = postgres_server.url.rpartition("/")[0] + "/prepared"
    write(postgres_server.url, "CREATE DATABASE prepared")
    make_table(url, 2)
    followers = {mode: Follower(open_table(url, mode)) for mode in ("xid", "holdback")}
    for follower in followers.values():
        follower.refresh()
    with psycopg.connect(url, autocommit=True) as slow:
        for statement in ("BEGIN", "INSERT INTO docs (id, body) VALUES (9, 'late')"):
            slow.execute(statement.encode())
        time.sleep(1.2)
        slow.execute(b"PREPARE TRANSACTION 'pending'")
    for follower in followers.values():
        found = follower.refresh()
        assert any("'pending'" in warning for warning in found.observations.warnings)
        follower.refresh()
    write(url, "COMMIT PREPARED 'pending'")
    for mode, follower in followers.items():
        follower.refresh()
        assert follower.texts == stored(url), mode


def test_another_table_of_the_same_name_is_another_source(postgres_url: str) -> None:
    make_table(postgres_url, 3)
    source = open_table(postgres_url, "xid")
    before = source.incarnation()
    assert before == open_table(postgres_url, "scan").incarnation()
    write(postgres_url, "CREATE TABLE copy AS TABLE docs", "DROP TABLE docs", "ALTER TABLE copy RENAME TO docs")
    assert open_table(postgres_url, "scan").incarnation() != before


def test_a_cursor_of_other_settings_compares_everything(postgres_url: str) -> None:
    make_table(postgres_url, 4)
    follower = Follower(open_table(postgres_url, "xid"))
    follower.refresh()
    write(postgres_url, "ALTER TABLE docs ADD other text DEFAULT 'the same for all'")
    follower.source = open_table(postgres_url, "xid", text_column="other")
    changes = follower.refresh()
    assert changes.listed is not None and set(follower.texts.values()) == {"the same for all"}
    follower.source = open_table(postgres_url, "holdback", text_column="other")
    changes = follower.refresh()
    assert changes.listed is not None and follower.num_read == 0, "hashes are the same, nothing is read"


def test_documents_to_try_again_are_named(postgres_url: str) -> None:
    make_table(postgres_url, 4)
    follower = Follower(open_table(postgres_url, "xid", prefix_ids=True))
    follower.refresh()
    changes = follower.refresh(retry={"pg/2", "pg/77"})
    assert [candidate.doc_id for candidate in changes.upserts] == ["pg/2"]


@pytest.mark.parametrize("id_type", ["uuid", "varchar(40)", "char(10)", "numeric", "int"])
def test_ids_of_any_type(postgres_url: str, id_type: str) -> None:
    value = "gen_random_uuid()" if id_type == "uuid" else f"(random() * 100000)::int::text::{id_type}"
    write(
        postgres_url,
        f'CREATE TABLE "Odd "" name" ("I d" {id_type} PRIMARY KEY, "te;xt" jsonb)',
        f'INSERT INTO "Odd "" name" VALUES ({value}, \'{{"a": "ö"}}\')',
    )
    settings = {"table": '"Odd "" name"', "id_column": "I d", "text_column": "te;xt"}
    follower = Follower(open_table(postgres_url, "scan", **settings))
    follower.refresh()
    assert list(follower.texts.values()) == ['{"a": "ö"}']


def test_texts_too_large_or_unfit_go_to_quarantine_and_come_back(postgres_url: str) -> None:
    make_table(postgres_url, 2)
    write(
        postgres_url,
        "UPDATE docs SET body = repeat('x', 2000) WHERE id = 1",
        r"UPDATE docs SET body = repeat(E'\x01', 100) WHERE id = 2",
    )
    follower = Follower(open_table(postgres_url, "xid", max_document_bytes="1kB"))
    follower.refresh()
    assert "raise sources.pg.max_document_bytes" in follower.failures["1"]
    assert "control characters" in follower.failures["2"]
    write(postgres_url, "UPDATE docs SET body = 'fine'")
    follower.refresh()
    assert not follower.failures and set(follower.texts.values()) == {"fine"}


def test_html_in_a_column_is_read_as_text(postgres_url: str) -> None:
    make_table(postgres_url, 1)
    write(postgres_url, "UPDATE docs SET body = '<h1>Head</h1><p>café'")
    follower = Follower(open_table(postgres_url, "xid", text_format="html"))
    follower.refresh()
    assert follower.texts == {"1": "# Head\n\ncafé\n"}
    assert not follower.refresh().upserts, "the server computes the hash that the reader does"


def test_a_database_in_another_encoding(postgres_server: Server) -> None:
    write(postgres_server.url, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    url = postgres_server.url.rpartition("/")[0] + "/latin"
    make_table(url, 1)
    write(url, r"UPDATE docs SET body = U&'caf\00e9'")
    follower = Follower(open_table(url, "xid"))
    follower.refresh()
    assert follower.texts == {"1": "café"}
    assert not follower.refresh().upserts


def test_a_transaction_that_is_open_for_long_is_named(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(postgres_url, 1)
    monkeypatch.setattr(postgres_bounds, "LONG_HOLD_S", 0.2)
    with psycopg.connect(postgres_url, application_name="forgotten") as slow:
        slow.execute("UPDATE docs SET body = 'x'")
        time.sleep(0.5)
        for mode in ("xid", "holdback"):
            found = Follower(open_table(postgres_url, mode)).refresh().observations
            (warning,) = found.warnings
            assert "application forgotten" in warning and found.held_back_s > 0.2
            assert f"pg_terminate_backend({slow.info.backend_pid});" in warning


def test_a_locked_table_is_for_later(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_table(postgres_url, 1)
    monkeypatch.setattr(postgres_session, "LOCK_LIMIT_S", 1)
    with psycopg.connect(postgres_url) as locking:
        locking.execute("LOCK TABLE docs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceUnavailable, match="lock timeout"):
            Follower(open_table(postgres_url, "xid")).refresh()


def test_the_watermark_is_the_servers_time(postgres_url: str) -> None:
    make_table(postgres_url, 1)
    for mode in MODES:
        found = Follower(open_table(postgres_url, mode)).refresh().observations
        assert found.watermark is not None
        assert abs((datetime.now(UTC) - found.watermark).total_seconds()) < 30
