"""What the store knows of its sources' documents: rows of ``source_state`` to compare with, and the rows to write."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.pipeline.settled import settle
from lodestream.pipeline.sources.protocol import KnownDocument, SourceState
from lodestream.schema import SOURCE_STATE_SCHEMA
from lodestream.storage.store import Snapshot

FIRST_RETRY: Final = timedelta(minutes=5)
LAST_RETRY: Final = timedelta(days=1)
"""A document in quarantine is tried again after five minutes, then after twice as long each time, up to a day."""

_LOOKUP_IDS: Final = 1000
_MAX_LOOKUPS: Final = 20
"""Above so many look-ups reading the whole table is cheaper."""

_STATE_COLUMNS: Final = ("source_version", "size_bytes", "mtime_ns", "ctime_ns", "object_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentState:
    """What the table ``documents`` says of a document."""

    content_hash: bytes
    source_version: str
    feature_version: str
    quarantine_reason: str | None


class StoredStates:
    """The documents of one source in a snapshot, as ``sources.protocol.KnownStates``."""

    def __init__(
        self, snapshot: Snapshot | None, source: str, *, settled: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Args:
        snapshot: what holds them; None holds none.
        source: its name.
        settled: entries of ``settled.SettledStates``, which are newer than the snapshot.
        """
        self._snapshot = snapshot
        self._source = source
        self._settled = settled or {}
        self._loaded: dict[str, KnownDocument] | None = None

    def load(self) -> Mapping[str, KnownDocument]:
        """All of them by doc_id; read once."""
        if self._loaded is None:
            self._loaded = self._read(pc.field("source") == self._source)
        return self._loaded

    def find(self, doc_ids: Collection[str]) -> Mapping[str, KnownDocument]:
        """Those of ``doc_ids`` that are known; looked up by the index."""
        if self._loaded is not None or len(doc_ids) > _LOOKUP_IDS * _MAX_LOOKUPS:
            known = self.load()
            return {doc_id: known[doc_id] for doc_id in doc_ids if doc_id in known}
        found: dict[str, KnownDocument] = {}
        for where in _split_ids(doc_ids):
            found |= self._read(where & (pc.field("source") == self._source))
        return found

    def doc_ids(self) -> frozenset[str]:
        """The names of all of them."""
        if self._loaded is not None or self._snapshot is None:
            return frozenset(self._loaded or ())
        table = self._snapshot.open_table("source_state").read(["doc_id"], where=pc.field("source") == self._source)
        return frozenset(table.column("doc_id").to_pylist())

    def _read(self, where: Any) -> dict[str, KnownDocument]:
        if self._snapshot is None:
            return {}
        names = ["doc_id", "content_hash", *_STATE_COLUMNS]
        table = self._snapshot.open_table("source_state").read(names, where=where)
        columns = [table.column(name).to_pylist() for name in names]
        found = {
            doc_id: KnownDocument(
                content_hash=content_hash,
                state=SourceState(
                    version=version, size_bytes=size, mtime_ns=mtime, ctime_ns=ctime, object_id=object_id
                ),
            )
            for doc_id, content_hash, version, size, mtime, ctime, object_id in zip(*columns, strict=True)
        }
        newer = {doc_id: settle(found[doc_id], entry) for doc_id, entry in self._settled.items() if doc_id in found}
        return found | newer


def find_documents(snapshot: Snapshot | None, doc_ids: Collection[str]) -> dict[str, DocumentState]:
    """States of those of ``doc_ids`` that the table ``documents`` has, by doc_id."""
    if snapshot is None or not doc_ids:
        return {}
    names = ["doc_id", "content_hash", "source_version", "feature_version", "quarantine_reason"]
    rows = find_rows(snapshot, "documents", doc_ids, names)
    return {
        doc_id: DocumentState(content_hash=h, source_version=s, feature_version=f, quarantine_reason=q)
        for doc_id, h, s, f, q in zip(*(rows.column(name).to_pylist() for name in names), strict=True)
    }


def find_sources(snapshot: Snapshot | None) -> set[str]:
    """The sources of all documents."""
    if snapshot is None:
        return set()
    return set(pc.unique(snapshot.open_table("source_state").read(["source"]).column("source")).to_pylist())


def find_contents(snapshot: Snapshot | None) -> dict[str, tuple[bytes, str | None]]:
    """Content hash and reason for quarantine of every document, by doc_id."""
    if snapshot is None:
        return {}
    names = ["doc_id", "content_hash", "quarantine_reason"]
    columns = snapshot.open_table("documents").read(names).columns
    return {doc_id: (h, reason) for doc_id, h, reason in zip(*(column.to_pylist() for column in columns), strict=True)}


def find_rows(snapshot: Snapshot, table: str, doc_ids: Collection[str], columns: Sequence[str]) -> pa.Table:
    """The rows of some documents in one of the store's tables, in no promised order."""
    opened = snapshot.open_table(table)
    if len(doc_ids) > _LOOKUP_IDS * _MAX_LOOKUPS:
        rows = opened.read(columns)
        return rows.filter(pc.is_in(rows.column("doc_id"), pa.array(doc_ids, pa.string())))
    parts = [opened.read(columns, where=where) for where in _split_ids(doc_ids)]
    empty = pa.schema([opened.schema.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *parts])


def read_quarantine(snapshot: Snapshot | None) -> list[dict[str, Any]]:
    """Rows of ``source_state`` of all documents in quarantine, by doc_id."""
    if snapshot is None:
        return []
    table = snapshot.open_table("source_state")
    rows = table.read(table.schema.names, where=pc.field("quarantine_reason").is_valid())
    found: list[dict[str, Any]] = rows.sort_by("doc_id").to_pylist()
    return found


def build_state_rows(
    outcomes: Iterable[Mapping[str, Any]], previous: Mapping[str, Mapping[str, Any]], *, run_id: str
) -> pa.Table:
    """Rows of ``source_state`` for documents that were looked at.

    Args:
        outcomes: what became of each: columns of ``stages.READ_SCHEMA``.
        previous: their rows of ``source_state`` so far, by doc_id.
        run_id: the run that writes the rows.

    Returns:
        Rows of the documents whose row says something new; the others keep theirs.
    """
    now = datetime.now(UTC)
    rows = []
    for outcome in outcomes:
        before = previous.get(outcome["doc_id"])
        row = {name: outcome[name] for name in ("doc_id", "source", "content_hash", *_STATE_COLUMNS)}
        row |= _describe_quarantine(outcome, before, now)
        if before is not None and all(before[name] == value for name, value in row.items()):
            continue
        first_seen_at = before["first_seen_at"] if before else now
        rows.append(row | {"first_seen_at": first_seen_at, "stated_at": now, "run_id": run_id})
    return pa.Table.from_pylist(rows, schema=SOURCE_STATE_SCHEMA)


def _describe_quarantine(outcome: Mapping[str, Any], before: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    reason = outcome["quarantine_reason"]
    if reason is None:
        return {"quarantine_reason": None, "quarantine_attempts": 0, "first_failed_at": None, "retry_at": None}
    failed_before = before is not None and before["quarantine_reason"] is not None
    # Other bytes are another failure: they are tried again soon.
    same_bytes = failed_before and before is not None and before["content_hash"] == outcome["content_hash"]
    attempts = before["quarantine_attempts"] + 1 if same_bytes and before is not None else 1
    return {
        "quarantine_reason": reason,
        "quarantine_attempts": attempts,
        "first_failed_at": before["first_failed_at"] if failed_before and before is not None else now,
        "retry_at": now + wait_before_retry(attempts),
    }


def wait_before_retry(attempts: int) -> timedelta:
    """How long a document that failed ``attempts`` times in a row is left alone."""
    doublings = min(attempts - 1, 16)
    return min(LAST_RETRY, FIRST_RETRY * (1 << doublings))


def _split_ids(doc_ids: Collection[str]) -> Iterable[Any]:
    ids = list(doc_ids)
    for start in range(0, len(ids), _LOOKUP_IDS):
        yield pc.field("doc_id").isin(pa.array(ids[start : start + _LOOKUP_IDS], pa.string()))
