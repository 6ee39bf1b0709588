"""Which mode holds for which table, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import PostgresSource
from lodestream.pipeline.sources.postgres_catalog import TableFacts, choose_mode, parse_facts, require_columns
from lodestream.pipeline.sources.postgres_query import write_queries
from lodestream.pipeline.sources.postgres_session import explain_error, show_url
from lodestream.pipeline.sql_names import quote_name, quote_table, split_table

ON_BOTH = 4 | 16
TYPES = {
    "id": ("bigint", "N", 0, ""),
    "text": ("text", "S", 0, ""),
    "change_xid": ("xid8", "U", ON_BOTH, "pg_current_xact_id()"),
    "updated_at": ("timestamp with time zone", "D", ON_BOTH, "now()"),
}


def make_facts(columns: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> TableFacts:
    described = [
        {
            "name": name,
            "type": kind,
            "category": category,
            "is_nullable": False,
            "is_readable": True,
            "default": default,
            "stamped_on": stamped_on,
            **(columns or {}).get(name, {}),
        }
        for name, (kind, category, stamped_on, default) in TYPES.items()
    ]
    values: dict[str, Any] = {
        "role": "reader",
        "encoding": "UTF8",
        "timezone": "UTC",
        "is_standby": False,
        "sees_all_transactions": True,
        "identity": "1-1-5-7",
        "kind": "r",
        "num_rows": 10,
        "is_readable": True,
        "is_subscribed": False,
        "unique": ["id"],
        "indexed": ["id", "change_xid", "updated_at"],
        "columns": described,
    }
    return parse_facts(values | changes)


def make_config(**settings: Any) -> PostgresSource:
    values = {"kind": "postgres", "url": "postgresql://db/app", "table": "docs"}
    both = {"xid_column": "change_xid", "updated_column": "updated_at"}
    return PostgresSource.model_validate({**values, **both, **settings})


@pytest.mark.parametrize(
    ("facts", "mode", "why"),
    [
        (make_facts(), "xid", "exact"),
        (make_facts({"change_xid": {"stamped_on": 4}}), "holdback", "not xid: no trigger sets change_xid"),
        (make_facts({"change_xid": {"type": "bigint"}}), "holdback", "not xid: change_xid is of type bigint"),
        (make_facts({"change_xid": {"stamped_on": 16, "default": ""}}), "holdback", "when a row is inserted"),
        (make_facts(is_standby=True), "lookback", "the server is a standby"),
        (make_facts(is_subscribed=True), "lookback", "a subscription writes the table"),
        (make_facts(kind="v"), "lookback", "it is no table but a view"),
        (
            make_facts({"change_xid": {"stamped_on": 0}}, sees_all_transactions=False),
            "lookback",
            "not holdback: the role reader cannot see",
        ),
        (make_facts({"updated_at": {"type": "integer"}}, is_standby=True), "scan", "which is no time"),
        (
            make_facts(
                {"updated_at": {"type": "timestamp without time zone"}}, is_standby=True, timezone="Europe/Rome"
            ),
            "scan",
            "local time",
        ),
    ],
)
def test_auto_takes_the_best_mode_that_holds(facts: TableFacts, mode: str, why: str) -> None:
    chosen = choose_mode("pg", make_config(), facts)
    assert chosen.mode == mode and why in chosen.why


@pytest.mark.parametrize(
    ("mode", "facts", "hint"),
    [
        ("xid", make_facts(is_standby=True), 'mode = "lookback" or "scan"'),
        ("xid", make_facts({"change_xid": {"stamped_on": 0}}), "CREATE TRIGGER"),
        ("xid", make_facts({"change_xid": {"stamped_on": 16, "default": ""}}), "SET DEFAULT pg_current_xact_id()"),
        ("holdback", make_facts(sees_all_transactions=False), 'GRANT pg_read_all_stats TO "reader";'),
        ("holdback", make_facts({"updated_at": {"type": "timestamp without time zone"}}), "TYPE timestamptz"),
        ("lookback", make_facts({"updated_at": {"type": "integer"}}), "timestamptz"),
    ],
)
def test_a_mode_that_would_lose_rows_is_refused_with_what_to_type(mode: str, facts: TableFacts, hint: str) -> None:
    with pytest.raises(SourceContract, match=f"mode = {mode} would lose rows") as caught:
        choose_mode("pg", make_config(mode=mode), facts)
    assert hint in caught.value.hint


def test_a_mode_that_may_lose_rows_comes_with_what_to_type_for_one_that_does_not() -> None:
    unseen = make_facts({"change_xid": {"stamped_on": 0}}, sees_all_transactions=False)
    advice = choose_mode("pg", make_config(), unseen).advice
    assert advice.startswith("to lose nothing") and "mode holdback: type: GRANT pg_read_all_stats" in advice
    assert not choose_mode("pg", make_config(), make_facts()).advice


def test_what_slows_a_mode_down_is_a_warning() -> None:
    (warning,) = choose_mode("pg", make_config(), make_facts(indexed=[])).warnings
    assert 'CREATE INDEX CONCURRENTLY ON "docs" ("change_xid");' in warning
    (warning,) = choose_mode("pg", make_config(mode="scan"), make_facts(num_rows=5_000_000)).warnings
    assert "5000000 rows" in warning
    unstamped = make_facts({"updated_at": {"stamped_on": 0}})
    (warning,) = choose_mode("pg", make_config(mode="lookback"), unstamped).warnings
    assert "what its writers forget" in warning


def test_a_database_of_unknown_encoding_is_refused() -> None:
    with pytest.raises(SourceContract, match="SQL_ASCII"):
        require_columns("pg", make_config(), make_facts(encoding="SQL_ASCII"))


def test_rows_without_a_stamp_are_in_every_window() -> None:
    config = make_config(mode="xid")
    for is_nullable in (False, True):
        facts = make_facts({"change_xid": {"is_nullable": is_nullable}})
        window = write_queries(config, facts, choose_mode("pg", config, facts)).window
        assert ("IS NULL" in window) is is_nullable


@pytest.mark.parametrize(
    ("text", "parts"),
    [("docs", ("docs",)), ("App.Docs", ("App", "Docs")), ('"a.b"."c""d"', ("a.b", 'c"d')), ('x."y"', ("x", "y"))],
)
def test_names_of_tables_are_taken_as_they_are_written(text: str, parts: tuple[str, ...]) -> None:
    assert split_table(text) == parts
    assert quote_table(text) == ".".join(quote_name(part) for part in parts)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a.b.c", 'a"b', '"a', 'a; DROP TABLE b"'])
def test_other_texts_are_no_names(text: str) -> None:
    with pytest.raises(ValueError, match="must be a name"):
        split_table(text)


def test_quoting_leaves_nothing_to_escape() -> None:
    assert quote_name('x"; DROP TABLE docs; --') == '"x""; DROP TABLE docs; --"'


@pytest.mark.parametrize("state", ["40001", "08006", "57P01", "53300", "55P03", None])
def test_errors_that_pass_are_for_later(state: str | None) -> None:
    assert explain_error("pg", state, "reason").exit_code == 75


@pytest.mark.parametrize("state", ["42P01", "42703", "42501", "22P02"])
def test_errors_that_stay_name_what_to_do(state: str) -> None:
    error = explain_error("pg", state, "reason")
    assert error.exit_code == 1 and error.hint


def test_a_password_is_never_shown() -> None:
    assert show_url("postgresql://me:secret@db:5433/app?password=secret") == "postgresql://me@db:5433/app"
    assert show_url("host=db password=secret") == ""
