"""The text of the queries of one table. Names are quoted; values are parameters or settings of the transaction, so that
rows still come by COPY, which takes no parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lodestream.pipeline.config.sources import PostgresSource
from lodestream.pipeline.sources.formats import reading_version
from lodestream.pipeline.sources.postgres_catalog import ModeChoice, TableFacts
from lodestream.pipeline.sql_names import quote_name, quote_table

SET_VALUES: Final = "SELECT set_config('lodestream.low', $1, true), set_config('lodestream.clock', $2, true)"
"""Gives the transaction the bound below which rows are known, and the clock."""

_LOW: Final = "current_setting('lodestream.low')"
_CLOCK: Final = "current_setting('lodestream.clock')::timestamptz"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableQueries:
    """Queries with the columns id, version, size_bytes, content_hash, is_fresh, is_future, but for ``tombstones``: id.

    ``window``      rows at or above the low bound; "" in mode scan
    ``everything``  all rows
    ``by_id``       the rows whose ids are in the text array $1
    ``tombstones``  ids of deleted rows at or above the low bound; "" without a tombstone table
    """

    window: str
    everything: str
    by_id: str
    tombstones: str


def write_queries(config: PostgresSource, facts: TableFacts, choice: ModeChoice) -> TableQueries:
    """The queries for a table and a mode."""
    row_id, table = quote_name(config.id_column), quote_table(config.table)
    fresh = _write_window(facts, choice)
    columns = (
        f"{row_id}::text AS id, {_write_version(choice.column)} AS version, "
        f"octet_length({_write_text(config)}) AS size_bytes, {_write_hash(config)} AS content_hash, "
        f"{fresh or 'true'} AS is_fresh, {_write_future(facts, choice)} AS is_future"
    )
    base = f"SELECT {columns} FROM {table} WHERE {row_id} IS NOT NULL"
    tombstones = ""
    if config.tombstone_table and fresh:
        tombstones = (
            f"SELECT DISTINCT gone.{row_id}::text AS id FROM {quote_table(config.tombstone_table)} AS gone "
            f"WHERE {fresh} AND NOT EXISTS (SELECT FROM {table} AS kept WHERE kept.{row_id} = gone.{row_id})"
        )
    return TableQueries(
        window=f"{base} AND ({fresh})" if fresh else "",
        everything=base,
        by_id=f"{base} AND {_write_id_test(config, facts)}",
        tombstones=tombstones,
    )


def write_body_query(config: PostgresSource, facts: TableFacts, choice: ModeChoice) -> str:
    """The query for id, version, size_bytes and text (UTF-8) of the rows whose ids are in the text array $1."""
    text = _write_text(config)
    return (
        f"SELECT {quote_name(config.id_column)}::text AS id, {_write_version(choice.column)} AS version, "
        f"octet_length({text}) AS size_bytes, convert_to({text}, 'UTF8') AS text "
        f"FROM {quote_table(config.table)} WHERE {_write_id_test(config, facts)}"
    )


def _write_id_test(config: PostgresSource, facts: TableFacts) -> str:
    """Whether a row's id is in the text array $1; compared in the column's own type, for its index."""
    return f"{quote_name(config.id_column)} = ANY($1::text[]::{facts.columns[config.id_column].type}[])"


def _write_text(config: PostgresSource) -> str:
    """The text of a row."""
    return f"coalesce({quote_name(config.text_column)}::text, '')"


def _write_version(column: str) -> str:
    """What tells one version of a row from another; "" in mode scan, where the hash does."""
    return f"coalesce({quote_name(column)}::text, '')" if column else "''"


def _write_hash(config: PostgresSource) -> str:
    body = f"convert_to({_write_text(config)}, 'UTF8')"
    reading = reading_version(config.text_format)
    if reading:
        body = f"'\\x{reading.encode().hex()}00'::bytea || {body}"
    return f"sha256({body})"


def _write_window(facts: TableFacts, choice: ModeChoice) -> str:
    if not choice.column:
        return ""
    column = quote_name(choice.column)
    found = facts.columns[choice.column]
    if found.type == "xid8":
        low = f"{_LOW}::xid8"
    elif found.type == "timestamp without time zone":
        low = f"({_LOW}::timestamptz AT TIME ZONE 'UTC')"
    else:
        low = f"{_LOW}::timestamptz"
    # A row without a stamp is in no window, so it is in every one.
    return f"{column} >= {low}" + (f" OR {column} IS NULL" if found.is_nullable else "")


def _write_future(facts: TableFacts, choice: ModeChoice) -> str:
    if not choice.column or facts.columns[choice.column].type == "xid8":
        return "false"
    column = quote_name(choice.column)
    if facts.columns[choice.column].type == "timestamp without time zone":
        column = f"({column} AT TIME ZONE 'UTC')"
    return f"coalesce({column} > {_CLOCK}, false)"
