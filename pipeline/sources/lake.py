"""A table with versions (Delta, Lance) as a source: what changed between two versions, where the table knows it.

The cursor is a version. The same version means that nothing changed. Where the table's own record of changes does not
reach back to the cursor's version, all rows are compared by their hash.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from lodestream.errors import DocumentError, SourceContract, SourceUnavailable
from lodestream.pipeline.config.sources import DeltaSource, LanceSource
from lodestream.pipeline.sources.formats import reading_version
from lodestream.pipeline.sources.parquet_rows import check_columns
from lodestream.pipeline.sources.protocol import (
    Candidate,
    Cursor,
    KnownStates,
    Observations,
    ReadBody,
    SourceChanges,
    SourceCheck,
)
from lodestream.pipeline.sources.row_texts import RowTexts, gone_body
from lodestream.pipeline.sources.rows import RawRow, Row, RowNames, find_differences

Place = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeChanges:
    """What a table says has changed since a version.

    ``rows``    new and changed rows as they are now
    ``gone``    ids that are no longer there
    ``listed``  all ids that are there; None where ``gone`` says it
    """

    rows: tuple[RawRow, ...]
    gone: frozenset[str] = frozenset()
    listed: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LakePlace:
    """Where a table is, how its store is reached, and which columns count."""

    source: str
    uri: str
    id_column: str
    text_column: str
    options: Mapping[str, str]


class LakeTable(Protocol):
    """One version of a table.

    ``version``, ``stamp``  the version, and what tells it from one of the same number in a table made anew
    ``identity``            the table itself
    ``feed``                why changes can be asked for, or what has all rows compared instead
    """

    version: int
    stamp: str
    identity: str
    schema: pa.Schema
    feed: tuple[bool, str]

    def scan(self) -> Iterator[RawRow]:
        """All rows; ``place`` is what ``read`` finds them by."""
        ...

    def changed(self, version: int, stamp: str) -> LakeChanges | None:
        """What changed since a version; None where the table does not know."""
        ...

    def read(self, wanted: Sequence[tuple[Any, Place]]) -> Mapping[str, RawRow]:
        """Rows by id as text, asked for by id and place; a place of () where it is not known."""
        ...


class LakeOpener(Protocol):
    """Opens a table at its newest version, or at one; picklable."""

    def open(self, version: int | None = None) -> LakeTable:
        """Opens it.

        Raises:
            SourceContract: there is no such table, or it needs what is not supported.
            SourceUnavailable: it cannot be reached.
            ConfigError: its library is not installed.
        """
        ...


class LakeRows:
    """The rows of a table with versions: exact, as each is compared with the one before. Not for several threads."""

    def __init__(self, name: str, config: DeltaSource | LanceSource, opener: LakeOpener, *, prefix_ids: bool) -> None:
        """Args:
        name: the source's name in the configuration.
        config: its settings.
        opener: of the table.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.
        """
        self.name = name
        self._config = config
        self._opener = opener
        self._texts = RowTexts(source=name, text_format=config.text_format, max_bytes=config.max_document_bytes)
        self._names = RowNames(source=name, prefix=f"{name}/" if prefix_ids else "", place=f"{config.uri}#")

    def incarnation(self) -> str:
        """The table itself, and how its rows are read."""
        config = self._config
        names = (config.id_column, config.text_column, config.text_format, reading_version(config.text_format))
        return f"{config.kind}:{self._opener.open().identity}:{', '.join(filter(None, names))}"

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """See ``Source.changes``.

        Raises:
            SourceContract: there is no such table, or a column is gone or of another type.
            SourceUnavailable: it cannot be reached.
        """
        table = self._open()
        cursor = {"version": table.version, "stamp": table.stamp}
        if since is not None and dict(since) == cursor and not retry:
            return SourceChanges(upserts=(), num_seen=0, cursor=cursor, observations=_observe("version"))
        found = table.changed(since["version"], since["stamp"]) if since is not None and not retry else None
        if found is None:
            before = {} if since is None else known.load()
            differences = find_differences(
                self._take(table, table.scan(), with_place=True), self._names, before, retry=retry
            )
            return SourceChanges(
                upserts=differences.candidates,
                num_seen=len(differences.doc_ids),
                listed=differences.doc_ids,
                cursor=cursor,
                observations=_observe("scan"),
            )
        rows = list(self._take(table, found.rows, with_place=False))
        before = known.find([self._names.doc_id(row.row_id) for row in rows])
        differences = find_differences(rows, self._names, before)
        listed = None if found.listed is None else frozenset(map(self._names.doc_id, found.listed))
        return SourceChanges(
            upserts=differences.candidates,
            num_seen=len(differences.doc_ids),
            listed=listed,
            tombstones=frozenset(map(self._names.doc_id, found.gone)),
            cursor=cursor,
            observations=_observe("feed"),
        )

    def reader(self) -> LakeReader:
        """What reads the texts."""
        return LakeReader(opener=self._opener, texts=self._texts)

    def check(self) -> SourceCheck:
        """Opens the table and says how changes are found."""
        table = self._open()
        knows, why = table.feed
        detail = f"{self._config.uri}, version {table.version}; mode {'feed' if knows else 'scan'}: {why}"
        return SourceCheck(level="pass", detail=detail)

    def _open(self) -> LakeTable:
        table = self._opener.open()
        try:
            check_columns(table.schema, self._config.id_column, self._config.text_column)
        except DocumentError as error:
            raise SourceContract(
                f"sources.{self.name}: {error.message}",
                f"correct the columns of sources.{self.name}; its features are kept until then",
            ) from None
        return table

    def _take(self, table: LakeTable, rows: Iterable[RawRow], *, with_place: bool) -> Iterator[Row]:
        for raw in rows:
            if raw.id is None:
                continue  # names no document
            content_hash = self._texts.hash_text(raw.text)
            yield Row(
                row_id=str(raw.id),
                version=content_hash.hex()[:16],
                size_bytes=len(raw.text),
                content_hash=content_hash,
                locator=(table.version, raw.id, raw.place if with_place else ()),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeReader:
    """Reads rows from the version in which they were found."""

    opener: LakeOpener
    texts: RowTexts

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        wanted: dict[int, list[tuple[Any, Place]]] = {}
        for candidate in candidates:
            if not self.texts.is_too_large(candidate):
                version, row_id, place = candidate.locator
                wanted.setdefault(version, []).append((row_id, place))
        rows = {version: self._fetch(version, asked) for version, asked in wanted.items()}
        for candidate in candidates:
            version, row_id, _ = candidate.locator
            row = rows.get(version, {}).get(str(row_id))
            if self.texts.is_too_large(candidate):
                yield self.texts.refuse(candidate)
            elif row is None:
                yield gone_body(candidate)
            else:
                yield self.texts.make_body(row.text, candidate.state)

    def _fetch(self, version: int, wanted: Sequence[tuple[Any, Place]]) -> Mapping[str, RawRow]:
        try:
            return self.opener.open(version).read(wanted)
        except (OSError, pa.ArrowException) as error:
            raise SourceUnavailable(
                f"sources.{self.texts.source}: version {version} cannot be read any more: {error}",
                "the next run takes the newest version; keep versions for longer than a run takes",
            ) from None


def _observe(mode: str) -> Observations:
    return Observations(mode=mode, watermark=datetime.now(UTC))


def resolve_uri(uri: str, folder: Path) -> str:
    """A relative path starts from the configuration file's folder; a URI stays as it is."""
    return uri if "://" in uri else str((folder / Path(uri).expanduser()).resolve())
