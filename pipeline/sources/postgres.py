"""A table of PostgreSQL as a source: which rows changed since the cursor, without losing one to an open transaction.

A cursor that follows the largest time it has seen loses every row whose transaction began before that time and commits
after it. So the bound for the next read is taken first and lies below all open transactions, and the read sees one
snapshot. Rows above the bound are there and are taken as well; the next read sees them once more and finds them the
same. docs/sources.md has the modes.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa

from lodestream.pipeline.config.sources import PostgresSource
from lodestream.pipeline.sources.formats import reading_version
from lodestream.pipeline.sources.postgres_bounds import Bounds, bound_by_transactions, parse_time, read_bounds
from lodestream.pipeline.sources.postgres_catalog import (
    ModeChoice,
    SqlMode,
    TableFacts,
    choose_mode,
    read_facts,
    require_columns,
)
from lodestream.pipeline.sources.postgres_query import SET_VALUES, TableQueries, write_queries
from lodestream.pipeline.sources.postgres_reader import PostgresReader
from lodestream.pipeline.sources.postgres_session import PostgresSession, show_url
from lodestream.pipeline.sources.protocol import Cursor, KnownStates, Observations, SourceChanges, SourceCheck
from lodestream.pipeline.sources.rows import Row, RowDifferences, RowNames, find_differences

_START: Final = {"xid": "0", "holdback": "-infinity", "lookback": "-infinity", "scan": ""}
_COLUMNS: Final = ("id", "version", "size_bytes", "content_hash", "is_fresh", "is_future")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What one read looks at: all rows or those from ``low`` on; and whether it names every row it sees."""

    low: str
    is_full: bool
    names_all: bool


class PostgresTable:
    """The rows of a table. Guarantees by mode: docs/sources.md. Not for several threads."""

    def __init__(self, name: str, config: PostgresSource, *, prefix_ids: bool) -> None:
        """Args:
        name: the source's name in the configuration.
        config: its settings.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.
        """
        self.name = name
        self._config = config
        self._kept: tuple[weakref.finalize[..., Any], PostgresSession] | None = None
        self._names = RowNames(
            source=name,
            prefix=f"{name}/" if prefix_ids else "",
            place=f"{show_url(config.url)}/{config.table}/",
        )

    def incarnation(self) -> str:
        """The server, its timeline, the database and the table: a restored or promoted server is another.

        The connection is kept for ``changes``: making one costs more than all that a refresh without changes asks.
        """
        session = self._connect()
        try:
            identity = read_facts(session, self.name, self._config.table).identity
        except BaseException:
            session.close()
            raise
        self._kept = weakref.finalize(self, session.close), session
        return f"postgres:{identity}"

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """See ``Source.changes``.

        Raises:
            SourceUnavailable: the server cannot be reached, or ends the connection.
            SourceContract: the table, a column, a right or the mode's conditions are missing.
        """
        with self._connect() as session:
            facts, choice = self._examine(session)
            low = since["low"] if since is not None and self._counts(since, facts, choice) else None
            bounds = read_bounds(session, choice.mode, facts, low=low)
            queries = write_queries(self._config, facts, choice)
            with session.snapshot():
                next_low = bound_by_transactions(session) if choice.mode == "xid" else bounds.next_low
                if low is not None and _lies_behind(next_low, low, choice.mode):
                    low = None  # a backup was put back, or the clock: what was written since may lie below the cursor
                read = self._plan(choice, since, low, bounds)
                session.query(SET_VALUES, read.low, bounds.clock)
                found, num_future = self._compare(session, queries, read, known, retry)
                tombstones = self._read_tombstones(session, queries)
        swept_at = bounds.clock if since is None or read.is_full else since["swept_at"]
        return SourceChanges(
            upserts=found.candidates,
            num_seen=len(found.doc_ids),
            listed=found.doc_ids if read.is_full else None,
            tombstones=tombstones,
            cursor={**self._describe(facts, choice), "low": next_low, "swept_at": swept_at},
            observations=Observations(
                mode=choice.mode,
                watermark=bounds.watermark,
                held_back_s=bounds.held_back_s,
                num_future=num_future,
                num_swept=found.num_swept,
                warnings=(*choice.warnings, *bounds.warnings),
            ),
        )

    def reader(self) -> PostgresReader:
        """What fetches the texts."""
        return PostgresReader(source=self.name, config=self._config)

    def check(self) -> SourceCheck:
        """Connects and says which mode holds, and why."""
        with self._connect() as session:
            facts, choice = self._examine(session)
            bounds = read_bounds(session, choice.mode, facts, low=None)
        config = self._config
        num_rows = f", about {facts.num_rows} rows" if facts.num_rows >= 0 else ""  # below 0: never analysed
        detail = f"{config.table} at {show_url(config.url)}{num_rows}; mode {choice.mode}: {choice.why}"
        warnings = [*choice.warnings, *bounds.warnings]
        if config.id_column not in facts.unique:
            warnings.append(f"nothing makes {config.id_column} unique: a run stops at the first id that comes twice")
        if choice.mode != "scan" and not config.tombstone_table:
            detail += "; deletes show when all rows are looked at"
        fixes = [*warnings, choice.advice] if choice.advice else warnings
        return SourceCheck(level="warn" if warnings else "pass", detail=detail, fix="; ".join(fixes))

    def _connect(self) -> PostgresSession:
        """The connection that was kept, or a new one."""
        if self._kept is None:
            return PostgresSession(self.name, self._config.url)
        finalizer, session = self._kept
        finalizer.detach()
        self._kept = None
        return session

    def _examine(self, session: PostgresSession) -> tuple[TableFacts, ModeChoice]:
        facts = read_facts(session, self.name, self._config.table)
        require_columns(self.name, self._config, facts)
        return facts, choose_mode(self.name, self._config, facts)

    def _describe(self, facts: TableFacts, choice: ModeChoice) -> dict[str, str]:
        """What a cursor is good for: under another description all rows are compared."""
        config = self._config
        return {
            "mode": choice.mode,
            "column": choice.column,
            "id": f"{config.id_column} {facts.columns[config.id_column].type}",
            "text": f"{config.text_column} {config.text_format} {reading_version(config.text_format)}".strip(),
            "tombstones": config.tombstone_table,
        }

    def _counts(self, since: Cursor, facts: TableFacts, choice: ModeChoice) -> bool:
        return {name: since.get(name) for name in self._describe(facts, choice)} == self._describe(facts, choice)

    def _plan(self, choice: ModeChoice, since: Cursor | None, low: str | None, bounds: Bounds) -> _Read:
        if since is None or low is None:
            return _Read(low=_START[choice.mode], is_full=True, names_all=since is None)
        if choice.mode == "lookback" and low != _START["lookback"]:
            low = (parse_time(low) - timedelta(seconds=self._config.lookback)).isoformat()
        age_s = (parse_time(bounds.clock) - parse_time(since["swept_at"])).total_seconds()
        # An age below 0: the clock was ahead at the last sweep, and the next one must not wait until it is there again.
        is_due = self._config.sweep_every > 0 and not 0 <= age_s < self._config.sweep_every
        return _Read(low=low, is_full=is_due or choice.mode == "scan", names_all=False)

    def _compare(
        self, session: PostgresSession, queries: TableQueries, read: _Read, known: KnownStates, retry: Collection[str]
    ) -> tuple[RowDifferences, int]:
        """The rows that differ, and how many are stamped in the server's future."""
        tally = _Tally()
        if read.is_full:
            before = {} if read.names_all else known.load()
            rows = tally.count(session.stream(queries.everything))
            return find_differences(rows, self._names, before, retry=retry), tally.num_future
        found = list(tally.count(session.stream(queries.window)))
        seen = {row.row_id for row in found}
        missing = [row_id for row_id in self._names.row_ids(retry) if row_id not in seen]
        if missing:
            found += tally.count(session.stream(queries.by_id, missing))
        before = known.find([self._names.doc_id(row.row_id) for row in found]) if found else {}
        return find_differences(found, self._names, before, retry=retry), tally.num_future

    def _read_tombstones(self, session: PostgresSession, queries: TableQueries) -> frozenset[str]:
        if not queries.tombstones:
            return frozenset()
        rows = session.query(queries.tombstones)
        return frozenset(self._names.doc_id(row["id"]) for row in rows if row["id"] is not None)


def _lies_behind(bound: str, low: str, mode: SqlMode) -> bool:
    """Whether the source is no longer as far as it was at the last read."""
    if mode == "xid":
        return int(bound) < int(low)
    return _START[mode] not in (bound, low) and parse_time(bound) < parse_time(low)


class _Tally:
    """Turns batches into rows, and counts those stamped in the future."""

    def __init__(self) -> None:
        self.num_future = 0

    def count(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
        """The rows of the batches."""
        for batch in batches:
            columns = [batch.column(name).to_pylist() for name in _COLUMNS]
            for row_id, version, size_bytes, content_hash, is_fresh, is_future in zip(*columns, strict=True):
                self.num_future += is_future
                yield Row(
                    row_id=row_id,
                    version=version,
                    size_bytes=size_bytes,
                    content_hash=content_hash,
                    is_fresh=is_fresh,
                )
