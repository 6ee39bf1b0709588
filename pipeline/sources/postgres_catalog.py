"""What PostgreSQL's catalogues say of a table, and which way of finding changes holds for it.

The way is chosen anew in every run: a trigger that was dropped or a right that was taken away shows before rows are
lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import PostgresSource
from lodestream.pipeline.durations import format_duration
from lodestream.pipeline.sources.postgres_session import PostgresSession
from lodestream.pipeline.sql_names import quote_name, quote_table

SqlMode = Literal["xid", "holdback", "lookback", "scan"]

LARGE_SCAN_ROWS: Final = 1_000_000
_UTC_NAMES: Final = frozenset(("utc", "etc/utc", "gmt", "etc/gmt", "zulu", "etc/zulu", "uct", "greenwich", "universal"))
_DOCUMENT_TYPES: Final = frozenset(("json", "jsonb", "xml"))
_ON_INSERT: Final = 4
_ON_UPDATE: Final = 16
_TRANSACTION: Final = "pg_current_xact_id()"
_NOW: Final = "now()"
_DEFAULTS: Final = {
    _TRANSACTION: (_TRANSACTION,),
    _NOW: (_NOW, "CURRENT_TIMESTAMP", "clock_timestamp()", "statement_timestamp()", "transaction_timestamp()"),
}

_FACTS: Final = """
SELECT json_build_object(
  'role', current_user,
  'encoding', current_setting('server_encoding'),
  'timezone', (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'),
  'is_standby', pg_is_in_recovery(),
  'sees_all_transactions', pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
  'identity', concat_ws('-', (SELECT system_identifier FROM pg_control_system()),
                        (SELECT timeline_id FROM pg_control_checkpoint()),
                        (SELECT oid FROM pg_database WHERE datname = current_database()), c.oid),
  'kind', c.relkind,
  'num_rows', c.reltuples::bigint,
  'is_readable', has_any_column_privilege(c.oid, 'SELECT'),
  'is_subscribed', EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = c.oid),
  'unique', ARRAY(SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
                  WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
                    AND i.indpred IS NULL AND i.indexprs IS NULL),
  'indexed', ARRAY(SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
                   WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL),
  'columns', (SELECT json_agg(json_build_object(
      'name', a.attname,
      'type', format_type(a.atttypid, -1),
      'category', (SELECT typcategory FROM pg_type WHERE oid = a.atttypid),
      'is_nullable', NOT a.attnotnull,
      'is_readable', has_column_privilege(c.oid, a.attnum, 'SELECT'),
      'default', coalesce(pg_get_expr(d.adbin, d.adrelid), ''),
      'stamped_on', (
        SELECT coalesce(bit_or(t.tgtype), 0) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
          AND t.tgtype & 3 = 3 AND t.tgqual IS NULL
          AND (position(a.attname IN p.prosrc) > 0 OR position(a.attname IN encode(t.tgargs, 'escape')) > 0))))
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
)::text AS facts
FROM pg_class c WHERE c.oid = to_regclass($1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """A column. ``default`` is SQL; ``stamped_on`` joins the types (``pg_trigger.tgtype``) of the row triggers that run
    before a write, without a condition, and name the column."""

    name: str
    type: str
    category: str
    is_nullable: bool
    is_readable: bool
    default: str
    stamped_on: int

    def is_stamped_by(self, value: str) -> bool:
        """Whether the server sets the column on inserts: a trigger does, or the default, which ``value`` stands in."""
        return bool(self.stamped_on & _ON_INSERT) or any(word in self.default for word in _DEFAULTS[value])

    @property
    def is_stamped_on_update(self) -> bool:
        """Whether a trigger sets the column when a row is updated."""
        return bool(self.stamped_on & _ON_UPDATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A table, the server it lies on, and what the role may see.

    ``identity``  server, its timeline, database and table: another value, and no cursor counts
    ``unique``    columns that are unique alone
    ``indexed``   columns that an index begins with
    """

    role: str
    encoding: str
    timezone: str
    is_standby: bool
    sees_all_transactions: bool
    identity: str
    kind: str
    num_rows: int
    is_readable: bool
    is_subscribed: bool
    unique: frozenset[str]
    indexed: frozenset[str]
    columns: dict[str, ColumnFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChoice:
    """How changes are found, by which column, why, and what should be mended although it works; ``advice`` is what to
    type for a mode that loses nothing."""

    mode: SqlMode
    column: str
    why: str
    warnings: tuple[str, ...] = ()
    advice: str = ""


def read_facts(session: PostgresSession, source: str, table: str) -> TableFacts:
    """Looks a table up.

    Raises:
        SourceContract: there is none of that name.
    """
    found = session.query(_FACTS, quote_table(table))
    if not found:
        raise SourceContract(
            f"sources.{source}: there is no table {table} (names are taken as they are written, capitals included)",
            f"correct sources.{source}.table, such as schema.table; its features are kept until then",
        )
    return parse_facts(json.loads(found[0]["facts"]))


def parse_facts(values: dict[str, Any]) -> TableFacts:
    """Facts from the JSON of the query."""
    columns = {column["name"]: ColumnFacts(**column) for column in values.pop("columns") or ()}
    unique, indexed = frozenset(values.pop("unique")), frozenset(values.pop("indexed"))
    return TableFacts(columns=columns, unique=unique, indexed=indexed, **values)


def require_columns(source: str, config: PostgresSource, facts: TableFacts) -> None:
    """The table can be read at all.

    Raises:
        SourceContract: a column is gone or may not be read, or the texts' encoding is not known.
    """
    name = f"sources.{source}"
    wanted = {
        f"{name}.{setting}": getattr(config, setting)
        for setting in ("id_column", "text_column", "xid_column", "updated_column")
        if getattr(config, setting)
    }
    grant = f"GRANT SELECT ON {quote_table(config.table)} TO {quote_name(facts.role)};"
    if not facts.is_readable:
        raise SourceContract(f"{name}: the role {facts.role} may not read {config.table}", f"type: {grant}")
    for setting, column in wanted.items():
        if column not in facts.columns:
            raise SourceContract(
                f"{setting}: {config.table} has no column {column}; it has {', '.join(sorted(facts.columns))}",
                f"correct {setting}; its features are kept until then",
            )
        if not facts.columns[column].is_readable:
            raise SourceContract(f"{setting}: the role {facts.role} may not read the column {column}", f"type: {grant}")
    text = facts.columns[config.text_column]
    if text.category != "S" and text.type not in _DOCUMENT_TYPES:
        raise SourceContract(
            f"{name}.text_column: {config.text_column} is of type {text.type}, which is no text",
            f"correct {name}.text_column, or make a view that casts it; its features are kept until then",
        )
    if facts.encoding == "SQL_ASCII":
        raise SourceContract(
            f"{name}: the database is in SQL_ASCII, so that nobody knows what its texts' bytes mean",
            "move it to a database made with ENCODING 'UTF8'",
        )


def choose_mode(source: str, config: PostgresSource, facts: TableFacts) -> ModeChoice:
    """The best mode that holds, or the one that is set if it does.

    Raises:
        SourceContract: the mode that is set would lose rows; the hint says what to type.
    """
    refused: dict[str, tuple[str, str]] = {}
    for mode, examine in _EXAMINERS.items():
        if config.mode not in ("auto", mode):
            continue
        found = examine(f"sources.{source}", config, facts)
        if isinstance(found, ModeChoice):
            better = "; ".join(f"not {other}: {why}" for other, (why, _) in refused.items())
            why = f"{found.why} ({better})" if better else found.why
            return replace(found, why=why, advice=_advise(found.mode, refused))
        refused[mode] = found
    why, hint = refused[config.mode]
    raise SourceContract(f"sources.{source}.mode = {config.mode} would lose rows: {why}", hint)


def _advise(mode: SqlMode, refused: Mapping[str, tuple[str, str]]) -> str:
    """What to type for an exact mode where rows may be lost: the last one refused is the one nearest to hold."""
    if mode != "lookback" or not refused:
        return ""
    better, (_, hint) = list(refused.items())[-1]
    return f"to lose nothing, whatever the transactions, mode {better}: {hint}"


Examined = ModeChoice | tuple[str, str]
"""A choice, or why not and what to type."""


def _examine_xid(name: str, config: PostgresSource, facts: TableFacts) -> Examined:
    column = config.xid_column
    if not column:
        return (
            "no xid_column is set",
            (
                f"type: ALTER TABLE {quote_table(config.table)} ADD COLUMN change_xid xid8 NOT NULL "
                f'DEFAULT pg_current_xact_id(); then set {name}.xid_column = "change_xid"'
            ),
        )
    found = facts.columns[column]
    if found.type != "xid8":
        return f"{column} is of type {found.type}, not xid8", f"set {name}.xid_column to a column of type xid8"
    refusal = _examine_server(name, facts, column) or _examine_stamps(config, found, _TRANSACTION)
    if refusal:
        return refusal
    return ModeChoice(
        mode="xid",
        column=column,
        why=f"{column} holds the transaction that wrote a row last: exact",
        warnings=_warn_index(config, facts, column),
    )


def _examine_holdback(name: str, config: PostgresSource, facts: TableFacts) -> Examined:
    column = config.updated_column
    if not column:
        return "no updated_column is set", f'set {name}.updated_column, such as "updated_at"'
    found = facts.columns[column]
    if found.type != "timestamp with time zone":
        return (
            f"{column} is of type {found.type}",
            f"type: ALTER TABLE {quote_table(config.table)} ALTER COLUMN {quote_name(column)} TYPE timestamptz;",
        )
    refusal = _examine_server(name, facts, column) or _examine_stamps(config, found, _NOW)
    if refusal:
        return refusal
    if not facts.sees_all_transactions:
        return (
            f"the role {facts.role} cannot see other users' open transactions, whose rows would be lost",
            f"type: GRANT pg_read_all_stats TO {quote_name(facts.role)};",
        )
    return ModeChoice(
        mode="holdback",
        column=column,
        why=f"{column} is set by the server, and all open transactions are seen: exact",
        warnings=_warn_index(config, facts, column),
    )


def _examine_lookback(name: str, config: PostgresSource, facts: TableFacts) -> Examined:
    column = config.updated_column
    if not column:
        return "no updated_column is set", f'set {name}.updated_column, such as "updated_at"'
    found = facts.columns[column]
    if found.type not in ("timestamp with time zone", "timestamp without time zone"):
        return f"{column} is of type {found.type}, which is no time", f"set {name}.updated_column to a timestamptz"
    is_utc = facts.timezone.lower() in _UTC_NAMES
    if found.type == "timestamp without time zone" and not is_utc:
        return (
            f"{column} has no time zone and the server writes local time ({facts.timezone}), which jumps",
            f"type: ALTER TABLE {quote_table(config.table)} ALTER COLUMN {quote_name(column)} TYPE timestamptz;",
        )
    warnings = list(_warn_index(config, facts, column))
    if not found.is_stamped_on_update:
        warnings.append(
            f"no trigger sets {column} when a row is updated: what its writers forget shows in the sweep only"
        )
    why = (
        f"rows with {column} in the last {format_duration(config.lookback)} before the cursor are read again: complete "
        f"while no transaction is open longer, and every {format_duration(config.sweep_every)} a sweep counts what was "
        "lost"
    )
    return ModeChoice(mode="lookback", column=column, why=why, warnings=tuple(warnings))


def _examine_scan(name: str, config: PostgresSource, facts: TableFacts) -> Examined:
    is_large = facts.num_rows > LARGE_SCAN_ROWS
    cost = f"every refresh hashes about {facts.num_rows} rows on the server; {name}.xid_column avoids that"
    return ModeChoice(
        mode="scan",
        column="",
        why="every row is compared by its hash: exact",
        warnings=(cost,) if is_large else (),
    )


_EXAMINERS: Final = {
    "xid": _examine_xid,
    "holdback": _examine_holdback,
    "lookback": _examine_lookback,
    "scan": _examine_scan,
}


def _examine_server(name: str, facts: TableFacts, column: str) -> tuple[str, str] | None:
    """What makes a column that the server sets say nothing about this server's order of commits."""
    other = f'set {name}.mode = "lookback" or "scan"'
    if facts.is_standby:
        return (
            "the server is a standby, which does not know the primary's open transactions",
            f"{other}, or the primary",
        )
    if facts.is_subscribed:
        return (
            f"a subscription writes the table, and {column} comes from the publisher",
            f"{other}, or read from the publisher",
        )
    if facts.kind not in ("r", "p"):
        return "it is no table but a view, a foreign table or the like", f"{other}, or name the table itself"
    return None


def _examine_stamps(config: PostgresSource, column: ColumnFacts, value: str) -> tuple[str, str] | None:
    """Rows that the server does not stamp are not found by their stamp."""
    table = quote_table(config.table)
    if not column.is_stamped_on_update:
        return (
            f"no trigger sets {column.name} when a row is updated",
            f"type: {stamp_trigger(config.table, column.name, value)}",
        )
    if not column.is_stamped_by(value):
        return (
            f"the server does not set {column.name} when a row is inserted",
            f"type: ALTER TABLE {table} ALTER COLUMN {quote_name(column.name)} SET DEFAULT {value};",
        )
    return None


def _warn_index(config: PostgresSource, facts: TableFacts, column: str) -> tuple[str, ...]:
    if column in facts.indexed:
        return ()
    command = f"CREATE INDEX CONCURRENTLY ON {quote_table(config.table)} ({quote_name(column)});"
    return (f"no index begins with {column}, so that every refresh reads the whole table; type: {command}",)


def stamp_trigger(table: str, column: str, value: str) -> str:
    """The commands that make the server set ``column`` whenever a row is written."""
    function = quote_name("lodestream_stamp_" + table.replace(".", "_").replace('"', ""))
    return (
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN NEW.{quote_name(column)} := {value}; RETURN NEW; END$$; "
        f"CREATE TRIGGER {function} BEFORE INSERT OR UPDATE ON {quote_table(table)} "
        f"FOR EACH ROW EXECUTE FUNCTION {function}();"
    )
