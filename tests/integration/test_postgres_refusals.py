"""What a table of PostgreSQL is refused as a source for, and what the message says to type."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lodestream.errors import SourceContract, SourceUnavailable
from tests.support.known import Follower
from tests.support.postgres import make_table, open_table, stored, write
from tests.support.servers import Server


def refusal(source: Any) -> SourceContract:
    with pytest.raises(SourceContract) as caught:
        source.changes(None, Follower(source).known)
    return caught.value


def make_role(url: str, name: str, *grants: str) -> str:
    write(
        url,
        f"DROP ROLE IF EXISTS {name}",
        f"CREATE ROLE {name} LOGIN",
        *(f"GRANT {grant} TO {name}" for grant in grants),
    )
    return url.replace("lodestream@", f"{name}@")


@pytest.fixture
def plain_url(postgres_url: str) -> str:
    make_table(postgres_url, 3)
    name = "plain_" + postgres_url[-6:]
    return make_role(postgres_url, name, "SELECT ON docs", "SELECT ON gone")


def test_a_plain_role_is_refused_holdback_with_the_grant_to_type(plain_url: str, postgres_url: str) -> None:
    error = refusal(open_table(plain_url, "holdback"))
    role = plain_url.partition("//")[2].partition("@")[0]
    command = f'GRANT pg_read_all_stats TO "{role}";'
    assert "would lose rows" in error.message and command in error.hint
    write(postgres_url, command)
    assert Follower(open_table(plain_url, "holdback")).refresh().observations.mode == "holdback"


def test_auto_takes_the_best_mode_that_holds_and_says_why(plain_url: str) -> None:
    both = {"xid_column": "change_xid", "updated_column": "updated_at", "tombstone_table": ""}
    assert "mode xid: change_xid holds" in open_table(plain_url, "auto", **both).check().detail
    updated = open_table(plain_url, "auto", **both | {"xid_column": ""}).check()
    assert "mode lookback" in updated.detail and "GRANT pg_read_all_stats TO" in updated.fix
    assert "in the last 15m" in updated.detail and "not holdback: the role plain_" in updated.detail
    neither = open_table(plain_url, "auto", **both | {"xid_column": "", "updated_column": ""}).check()
    assert "mode scan: every row is compared" in neither.detail and "not xid: no xid_column is set" in neither.detail


@pytest.mark.parametrize("mode", ["xid", "holdback"])
def test_a_dropped_trigger_is_refused_with_the_trigger_to_type(postgres_url: str, mode: str) -> None:
    make_table(postgres_url, 2)
    follower = Follower(open_table(postgres_url, mode))
    follower.refresh()
    write(postgres_url, "DROP TRIGGER stamp ON docs")
    error = refusal(follower.source)
    assert "when a row is updated" in error.message
    write(postgres_url, error.hint.removeprefix("type: "), "UPDATE docs SET body = 'new' WHERE id = 1")
    follower.refresh()
    assert follower.texts == stored(postgres_url)


def test_columns_of_the_wrong_type_are_refused(postgres_url: str) -> None:
    make_table(postgres_url, 1)
    assert (
        "of type timestamp with time zone, not xid8"
        in refusal(open_table(postgres_url, "xid", xid_column="updated_at")).message
    )
    assert "which is no time" in refusal(open_table(postgres_url, "lookback", updated_column="id")).message
    assert "of type bigint, which is no text" in refusal(open_table(postgres_url, "scan", text_column="id")).message
    write(
        postgres_url,
        "ALTER TABLE docs ALTER updated_at TYPE timestamp",
        "ALTER DATABASE current SET TimeZone = 'Europe/Rome'" if False else "SELECT 1",
    )
    assert "of type timestamp without" in refusal(open_table(postgres_url, "holdback")).message
    database = postgres_url.rpartition("/")[2]
    write(postgres_url, f"ALTER DATABASE {database} SET TimeZone = 'Europe/Rome'")
    error = refusal(open_table(postgres_url, "lookback"))
    assert "local time (Europe/Rome)" in error.message and "TYPE timestamptz" in error.hint


def test_local_times_of_a_server_in_utc_are_followed(postgres_url: str) -> None:
    make_table(postgres_url, 2)
    write(
        postgres_url,
        "ALTER TABLE docs ALTER updated_at TYPE timestamp",
        "ALTER TABLE gone ALTER updated_at TYPE timestamp",
    )
    follower = Follower(open_table(postgres_url, "lookback", lookback="100ms"))
    time.sleep(0.3)
    follower.refresh()
    write(postgres_url, "UPDATE docs SET body = 'new' WHERE id = 1")
    changes = follower.refresh()
    assert changes.num_seen == 1 and follower.texts == stored(postgres_url)


def test_a_view_is_refused_the_modes_that_need_a_table(postgres_url: str) -> None:
    make_table(postgres_url, 2)
    write(postgres_url, "CREATE VIEW seen AS SELECT * FROM docs")
    assert "no table but a view" in refusal(open_table(postgres_url, "xid", table="seen", tombstone_table="")).message
    follower = Follower(open_table(postgres_url, "scan", table="seen"))
    follower.refresh()
    assert follower.texts == stored(postgres_url)


def test_what_is_missing_is_named_and_nothing_is_taken_for_deleted(plain_url: str, postgres_url: str) -> None:
    source = open_table(postgres_url, "xid")
    follower = Follower(source)
    follower.refresh()
    assert (
        "no column nope; it has body, change_xid, id, updated_at"
        in refusal(open_table(postgres_url, "scan", text_column="nope")).message
    )
    assert "there is no table nope" in refusal(open_table(postgres_url, "scan", table="nope")).message
    write(postgres_url, f"REVOKE SELECT ON docs FROM {plain_url.partition('//')[2].partition('@')[0]}")
    error = refusal(open_table(plain_url, "scan"))
    assert 'GRANT SELECT ON "docs" TO "plain_' in error.hint
    write(postgres_url, "DROP TABLE docs")
    assert "its features are kept" in refusal(source).hint


def test_an_id_that_comes_twice_stops_the_run(postgres_url: str) -> None:
    write(
        postgres_url, "CREATE TABLE docs (id int, body text)", "INSERT INTO docs VALUES (1, 'a'), (1, 'b'), (NULL, 'c')"
    )
    assert "nothing makes id unique" in open_table(postgres_url, "scan").check().fix
    assert "the id '1' comes more than once" in refusal(open_table(postgres_url, "scan")).message


def test_a_server_that_cannot_be_reached_is_for_later(postgres_server: Server, postgres_url: str) -> None:
    make_table(postgres_url, 1)
    source = open_table(postgres_url, "xid")
    follower = Follower(source)
    follower.refresh()
    postgres_server.stop()
    try:
        with pytest.raises(SourceUnavailable, match="Connection refused"):
            source.changes(follower.cursor, follower.known)
    finally:
        postgres_server.start()
    follower.refresh()
    assert follower.texts == stored(postgres_url)
    missing = open_table(postgres_url.rpartition("/")[0] + "/nowhere", "xid")
    assert "does not exist" in refusal(missing).message
