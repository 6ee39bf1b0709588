"""Rows of a table as documents: their names, and which of them differ from what the store holds.

What SQL tables, Delta and Lance tables and files of rows have in common. A row is the same where its hash and its
version are those that the store knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lodestream.errors import SourceContract
from lodestream.pipeline.sources.protocol import Candidate, KnownDocument, SourceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as a scan saw it, without its text.

    ``row_id``        its id as text
    ``version``       what changes whenever the row does, where the source has that
    ``size_bytes``    of the text
    ``content_hash``  of the text; None where only a read can tell
    ``locator``       what the reader finds it by
    ``object_id``     the file it lies in, where that matters
    ``is_fresh``      whether the cursor's window holds it; a row that differs and is not fresh was lost by the cursor
    """

    row_id: str
    version: str
    size_bytes: int
    content_hash: bytes | None
    locator: Any = None
    object_id: str | None = None
    is_fresh: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """A row as a file holds it: its id, its text in UTF-8, its place there, or why it is none."""

    id: Any
    text: bytes
    place: tuple[Any, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowNames:
    """How the rows of a source are called: ``prefix`` + id in the store, ``place`` + id for people."""

    source: str
    prefix: str
    place: str

    def doc_id(self, row_id: str) -> str:
        """The document that a row is."""
        return self.prefix + row_id

    def row_ids(self, doc_ids: Iterable[str]) -> list[str]:
        """The rows that documents are, in order."""
        return sorted(doc_id.removeprefix(self.prefix) for doc_id in doc_ids)

    def make_candidate(self, row: Row) -> Candidate:
        """The row as a document that may have changed."""
        return Candidate(
            doc_id=self.doc_id(row.row_id),
            source=self.source,
            uri=self.place + row.row_id,
            state=SourceState(version=row.version, size_bytes=row.size_bytes, object_id=row.object_id),
            size_bytes=row.size_bytes,
            locator=row.row_id if row.locator is None else row.locator,
            content_hash=row.content_hash,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifferences:
    """The rows that differ from what is known, in order of doc_id; every row that was looked at; and how many of the
    differences only a sweep found."""

    candidates: tuple[Candidate, ...]
    doc_ids: frozenset[str]
    num_swept: int


def find_differences(
    rows: Iterable[Row], names: RowNames, known: Mapping[str, KnownDocument], *, retry: Collection[str] = ()
) -> RowDifferences:
    """Compares rows with what is known of them.

    Args:
        rows: each id once.
        names: how they are called.
        known: what the store holds; empty to name every row.
        retry: doc_ids to name whether they differ or not.

    Raises:
        SourceContract: an id comes twice.
    """
    candidates = []
    doc_ids: set[str] = set()
    num_swept = 0
    for row in rows:
        doc_id = names.doc_id(row.row_id)
        if doc_id in doc_ids:
            raise SourceContract(
                f"sources.{names.source}: the id {row.row_id!r} comes more than once",
                f"set sources.{names.source}.id_column to a column that is unique, or make it so",
            )
        doc_ids.add(doc_id)
        before = known.get(doc_id)
        if before is not None and doc_id not in retry and _is_same(row, before):
            continue
        candidates.append(names.make_candidate(row))
        num_swept += before is not None and not row.is_fresh and row.content_hash != before.content_hash
        num_swept += before is None and not row.is_fresh
    candidates.sort(key=lambda candidate: candidate.doc_id)
    return RowDifferences(candidates=tuple(candidates), doc_ids=frozenset(doc_ids), num_swept=num_swept)


def _is_same(row: Row, before: KnownDocument) -> bool:
    if row.content_hash is not None and row.content_hash != before.content_hash:
        return False
    state = before.state
    return (row.version, row.size_bytes, row.object_id) == (state.version, state.size_bytes, state.object_id)
