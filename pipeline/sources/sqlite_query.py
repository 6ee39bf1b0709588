"""What a SQLite file says of a table, which way of finding changes holds for it, and the queries for it.

Names are checked against the catalogue first: SQLite reads a quoted name that it does not know as a piece of text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import SqliteSource
from lodestream.pipeline.durations import format_duration
from lodestream.pipeline.sources.sqlite_session import SqliteSession
from lodestream.pipeline.sql_names import quote_name

SqliteMode = Literal["log", "lookback", "scan"]

_TRIGGER: Final = re.compile(r"\b(INSERT|UPDATE|DELETE)\s+(?:OF\b.{0,2000}?)?\bON\b", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChoice:
    """How changes are found, why, and what should be mended although it works."""

    mode: SqliteMode
    why: str
    warnings: tuple[str, ...] = ()


def choose_mode(session: SqliteSession, source: str, config: SqliteSource) -> ModeChoice:
    """The best mode that holds, or the one that is set if it does.

    Raises:
        SourceContract: the table or a column is missing, or the mode that is set would lose rows.
    """
    name = f"sources.{source}"
    _require_columns(session, name, config)
    if config.mode in ("auto", "log") and config.log_table:
        _require_log(session, name, config)
        return ModeChoice(mode="log", why=f"triggers write every change into {config.log_table}, in order: exact")
    if config.mode == "log":
        raise SourceContract(f"{name}.mode = log, but no log_table is set", f"type: {write_log(config)}")
    if config.mode in ("auto", "lookback") and config.updated_column:
        why = (
            f"rows with {config.updated_column} in the last {format_duration(config.lookback)} before the cursor are "
            f"read again: complete while no transaction is open longer, and every "
            f"{format_duration(config.sweep_every)} a sweep counts what was lost"
        )
        return ModeChoice(mode="lookback", why=why)
    if config.mode == "lookback":
        raise SourceContract(f"{name}.mode = lookback, but no updated_column is set", f"set {name}.updated_column")
    return ModeChoice(mode="scan", why="every row is compared by its hash: exact")


def write_log(config: SqliteSource) -> str:
    """The commands that make a log of a table's changes."""
    log, table = quote_name(config.log_table or "docs_log"), quote_name(config.table)
    row_id = quote_name(config.id_column)
    triggers = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}
    commands = [f"CREATE TABLE {log} (seq INTEGER PRIMARY KEY AUTOINCREMENT, id);"]
    for event, sides in triggers.items():
        inserts = " ".join(f"INSERT INTO {log} (id) VALUES ({side}.{row_id});" for side in sides)
        trigger = quote_name(f"{config.log_table or 'docs_log'}_{event.lower()}")
        commands.append(f"CREATE TRIGGER {trigger} AFTER {event} ON {table} BEGIN {inserts} END;")
    return " ".join(commands)


def write_rows_query(config: SqliteSource, mode: SqliteMode) -> tuple[str, str]:
    """The query for all rows, and the condition of the window: its parameter is the low bound.

    Columns: id, kind (of the id), version, text (bytes), is_fresh, is_future.
    """
    row_id, text = quote_name(config.id_column), quote_name(config.text_column)
    version, future, window = "''", "0", ""
    if mode == "lookback":
        at = _write_time(config.updated_column)
        version = f"coalesce(CAST({quote_name(config.updated_column)} AS TEXT), '')"
        future = f"coalesce({at} > ?2, 0)"
        window = f"coalesce({at} >= ?1, 1)"
    elif mode == "log":
        window = f"{row_id} IN (SELECT id FROM {quote_name(config.log_table)} WHERE seq > ?1)"
    query = (
        f"SELECT CAST({row_id} AS TEXT) AS id, typeof({row_id}) AS kind, {version} AS version, "
        f"CAST(coalesce({text}, '') AS BLOB) AS text, CAST({window or '1'} AS INTEGER) AS is_fresh, "
        f"CAST({future} AS INTEGER) AS is_future FROM {quote_name(config.table)} WHERE {row_id} IS NOT NULL"
    )
    return query, window


def write_gone_query(config: SqliteSource) -> str:
    """The query for the ids that the log names above ?1 and the table does not have."""
    row_id = quote_name(config.id_column)
    return (
        f"SELECT DISTINCT CAST(id AS TEXT) AS id FROM {quote_name(config.log_table)} AS entry WHERE seq > ? "
        f"AND id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {quote_name(config.table)} AS kept "
        f"WHERE kept.{row_id} = entry.id)"
    )


def write_log_bounds_query(config: SqliteSource) -> str:
    """The query for the last number the log has given, and the first that it still holds (above all where none)."""
    log = quote_name(config.log_table)
    return (
        "SELECT CAST(coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?), 0) AS INTEGER) AS last, "
        f"CAST(coalesce((SELECT min(seq) FROM {log}), 9223372036854775807) AS INTEGER) AS first"
    )


def write_bodies_query(config: SqliteSource, mode: SqliteMode) -> str:
    """The query for id, version and text of the rows whose ids are in a JSON array, each of its own type, so that the
    key's index serves."""
    version = f"coalesce(CAST({quote_name(config.updated_column)} AS TEXT), '')" if mode == "lookback" else "''"
    return (
        f"SELECT CAST({quote_name(config.id_column)} AS TEXT) AS id, {version} AS version, "
        f"CAST(coalesce({quote_name(config.text_column)}, '') AS BLOB) AS text FROM {quote_name(config.table)} "
        f"WHERE {quote_name(config.id_column)} IN (SELECT value FROM json_each(?))"
    )


def write_one_condition(config: SqliteSource, place: int) -> str:
    """The condition for the row whose id as text is parameter number ``place``."""
    return f"CAST({quote_name(config.id_column)} AS TEXT) = ?{place}"


def _require_columns(session: SqliteSession, name: str, config: SqliteSource) -> None:
    wanted = {setting: getattr(config, setting) for setting in ("id_column", "text_column", "updated_column")}
    columns = _list_columns(session, config.table)
    if not columns:
        tables = session.query("SELECT CAST(name AS TEXT) AS name FROM sqlite_schema WHERE type IN ('table', 'view')")
        known = ", ".join(sorted(row["name"] for row in tables if not row["name"].startswith("sqlite_")))
        raise SourceContract(
            f"{name}: there is no table {config.table}; there is {known or 'none at all'}",
            f"correct {name}.table; its features are kept until then",
        )
    for setting, column in wanted.items():
        if column and column not in columns:
            raise SourceContract(
                f"{name}.{setting}: {config.table} has no column {column}; it has {', '.join(columns)}",
                f"correct {name}.{setting}; its features are kept until then",
            )


def _require_log(session: SqliteSession, name: str, config: SqliteSource) -> None:
    if not {"seq", "id"} <= set(_list_columns(session, config.log_table)):
        raise SourceContract(
            f"{name}.log_table: there is no table {config.log_table} with the columns seq and id",
            f"type: {write_log(config)}",
        )
    found = session.query(
        "SELECT CAST(coalesce(sql, '') AS TEXT) AS sql FROM sqlite_schema WHERE type = 'table' AND name = ?",
        config.log_table,
    )
    if "AUTOINCREMENT" not in found[0]["sql"].upper():
        raise SourceContract(
            f"{name}.log_table: seq of {config.log_table} is not AUTOINCREMENT, so that numbers come twice",
            f"make it anew: {write_log(config)}",
        )
    triggers = session.query(
        "SELECT CAST(coalesce(sql, '') AS TEXT) AS sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?",
        config.table,
    )
    logging = [row["sql"] for row in triggers if config.log_table in row["sql"]]
    events = {match[1].upper() for sql in logging if (match := _TRIGGER.search(sql))}
    missing = [event for event in ("INSERT", "UPDATE", "DELETE") if event not in events]
    if missing:
        raise SourceContract(
            f"{name}.mode = log would lose rows: no trigger on {config.table} writes {' and '.join(missing)} into "
            f"{config.log_table}",
            f"type what is missing of: {write_log(config)}",
        )


def _list_columns(session: SqliteSession, table: str) -> list[str]:
    return [row["name"] for row in session.query("SELECT CAST(name AS TEXT) AS name FROM pragma_table_xinfo(?)", table)]


def _write_time(column: str) -> str:
    """A time column in seconds since 1970: text as SQLite reads it, else a number of seconds or milliseconds."""
    name = quote_name(column)
    number = f"CAST({name} AS REAL)"
    # A text of digits alone is a number in a column of texts; SQLite would read it as a Julian day.
    return (
        f"(CASE WHEN {name} = '' OR typeof({name}) = 'blob' THEN NULL "
        f"WHEN typeof({name}) = 'text' AND {name} GLOB '*[^0-9.]*' THEN (julianday({name}) - 2440587.5) * 86400.0 "
        f"WHEN abs({number}) > 1e11 THEN {number} / 1000.0 ELSE {number} END)"
    )
