"""A table of a SQLite file as a source.

SQLite lets one transaction write at a time, so that the numbers of a log that triggers write are in the order of the
commits: what is above the last number read is new, and nothing can come below it. docs/sources.md has the modes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import SqliteSource
from lodestream.pipeline.sources.formats import reading_version
from lodestream.pipeline.sources.protocol import Cursor, KnownStates, Observations, SourceChanges, SourceCheck
from lodestream.pipeline.sources.row_texts import RowTexts
from lodestream.pipeline.sources.rows import Row, RowDifferences, RowNames, find_differences
from lodestream.pipeline.sources.sqlite_query import (
    ModeChoice,
    SqliteMode,
    choose_mode,
    write_gone_query,
    write_log_bounds_query,
    write_one_condition,
    write_rows_query,
)
from lodestream.pipeline.sources.sqlite_reader import SqliteReader
from lodestream.pipeline.sources.sqlite_session import SqliteSession

_CLOCK: Final = "SELECT (julianday('now') - 2440587.5) * 86400.0 AS now"
_ID_KINDS: Final = {"integer": int, "real": float, "text": str}
_COLUMNS: Final = ("id", "kind", "version", "text", "is_fresh", "is_future")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What one read looks at: all rows or those of the window, its low bound and the clock; and whether it names every
    row."""

    mode: SqliteMode
    now: float
    low: float
    next_low: float
    is_full: bool
    names_all: bool


class SqliteTable:
    """The rows of a table or view. Guarantees by mode: docs/sources.md. Not for several threads."""

    def __init__(self, name: str, config: SqliteSource, folder: Path, *, prefix_ids: bool) -> None:
        """Args:
        name: the source's name in the configuration.
        config: its settings; a relative path starts from ``folder``.
        folder: the configuration file's folder.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.
        """
        self.name = name
        self._config = config
        self._path = (folder / Path(config.path).expanduser()).resolve()
        self._texts = RowTexts(source=name, text_format=config.text_format, max_bytes=config.max_document_bytes)
        self._names = RowNames(
            source=name, prefix=f"{name}/" if prefix_ids else "", place=f"{self._path}/{config.table}/"
        )

    def incarnation(self) -> str:
        """The file: one that was put in its place has another inode."""
        with self._open():
            return f"sqlite:{self._path}:{self._path.stat().st_ino}:{self._config.table}"

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """See ``Source.changes``.

        Raises:
            SourceUnavailable: the file is locked for longer than a writer should need.
            SourceContract: the file, the table, a column or the mode's conditions are missing.
        """
        with self._open() as session, session.snapshot():
            choice = choose_mode(session, self.name, self._config)
            now = float(session.query(_CLOCK)[0]["now"])
            description = self._describe(choice)
            counts = since is not None and {name: since.get(name) for name in description} == description
            read = self._plan(session, choice.mode, since if counts else None, now, names_all=since is None)
            found, num_future = self._compare(session, read, known, retry)
            tombstones = self._read_tombstones(session, read)
        swept_at = now if since is None or read.is_full else since["swept_at"]
        return SourceChanges(
            upserts=found.candidates,
            num_seen=len(found.doc_ids),
            listed=found.doc_ids if read.is_full else None,
            tombstones=tombstones,
            cursor={**description, "low": read.next_low, "swept_at": swept_at},
            observations=Observations(
                mode=choice.mode,
                watermark=datetime.fromtimestamp(now, UTC),
                num_future=num_future,
                num_swept=found.num_swept,
                warnings=choice.warnings,
            ),
        )

    def reader(self) -> SqliteReader:
        """What fetches the texts."""
        return SqliteReader(source=self.name, path=str(self._path), config=self._config)

    def check(self) -> SourceCheck:
        """Opens the file and says which mode holds, and why."""
        with self._open() as session:
            choice = choose_mode(session, self.name, self._config)
        detail = f"{self._config.table} in {self._path}; mode {choice.mode}: {choice.why}"
        if choice.mode == "lookback":
            detail += "; deletes show in the sweep"
        level: Any = "warn" if choice.warnings else "pass"
        return SourceCheck(level=level, detail=detail, fix="; ".join(choice.warnings))

    def _open(self) -> SqliteSession:
        return SqliteSession(self.name, self._path)

    def _describe(self, choice: ModeChoice) -> dict[str, str]:
        """What a cursor is good for: under another description all rows are compared."""
        config = self._config
        return {
            "mode": choice.mode,
            "column": {"log": config.log_table, "lookback": config.updated_column, "scan": ""}[choice.mode],
            "id": config.id_column,
            "text": f"{config.text_column} {config.text_format} {reading_version(config.text_format)}".strip(),
        }

    def _plan(
        self, session: SqliteSession, mode: SqliteMode, since: Cursor | None, now: float, *, names_all: bool
    ) -> _Read:
        next_low, first = now, 0
        if mode == "log":
            bounds = session.query(write_log_bounds_query(self._config), self._config.log_table)[0]
            next_low, first = bounds["last"], bounds["first"]
        if since is None:
            return _Read(mode=mode, now=now, low=-1, next_low=next_low, is_full=True, names_all=names_all)
        low = since["low"]
        if mode == "log" and (low > next_low or (first > low + 1 and low < next_low)):
            # The log is older than the cursor, or entries were thrown away before they were read.
            return _Read(mode=mode, now=now, low=-1, next_low=next_low, is_full=True, names_all=False)
        if now < since["swept_at"] or (mode == "lookback" and now < low):
            # The clock was set back: what was written since may be stamped below the cursor.
            return _Read(mode=mode, now=now, low=-1, next_low=next_low, is_full=True, names_all=False)
        is_due = 0 < self._config.sweep_every <= now - since["swept_at"]
        if mode == "lookback":
            low -= self._config.lookback
        return _Read(mode=mode, now=now, low=low, next_low=next_low, is_full=is_due or mode == "scan", names_all=False)

    def _compare(
        self, session: SqliteSession, read: _Read, known: KnownStates, retry: Collection[str]
    ) -> tuple[RowDifferences, int]:
        """The rows that differ, and how many are stamped in the clock's future."""
        query, window = write_rows_query(self._config, read.mode)
        parameters = {"log": [read.low], "lookback": [read.low, read.now], "scan": []}[read.mode]
        tally = _Tally(self.name, self._texts)
        if read.is_full:
            before = {} if read.names_all else known.load()
            rows = tally.count(session.stream(query, *parameters))
            return find_differences(rows, self._names, before, retry=retry), tally.num_future
        found = list(tally.count(session.stream(f"{query} AND ({window})", *parameters)))
        seen = {row.row_id for row in found}
        for row_id in self._names.row_ids(retry):
            if row_id not in seen:
                condition = write_one_condition(self._config, len(parameters) + 1)
                found += tally.count(session.stream(f"{query} AND {condition}", *parameters, row_id))
        before = known.find([self._names.doc_id(row.row_id) for row in found]) if found else {}
        return find_differences(found, self._names, before, retry=retry), tally.num_future

    def _read_tombstones(self, session: SqliteSession, read: _Read) -> frozenset[str]:
        if read.mode != "log" or read.is_full:
            return frozenset()
        return frozenset(
            self._names.doc_id(row["id"]) for row in session.query(write_gone_query(self._config), read.low)
        )


class _Tally:
    """Turns batches into rows, and counts those stamped in the future."""

    def __init__(self, source: str, texts: RowTexts) -> None:
        self._source = source
        self._texts = texts
        self.num_future = 0

    def count(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
        """The rows of the batches."""
        for batch in batches:
            columns = [batch.column(name).to_pylist() for name in _COLUMNS]
            for row_id, kind, version, text, is_fresh, is_future in zip(*columns, strict=True):
                if kind not in _ID_KINDS:
                    raise SourceContract(
                        f"sources.{self._source}: an id is of type {kind}, which names nothing",
                        f"set sources.{self._source}.id_column to a column of numbers or texts",
                    )
                self.num_future += is_future
                yield Row(
                    row_id=row_id,
                    version=version,
                    size_bytes=len(text),
                    content_hash=self._texts.hash_text(text),
                    locator=_ID_KINDS[kind](row_id),
                    is_fresh=bool(is_fresh),
                )
