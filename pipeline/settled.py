"""Documents that were read again and had not changed: what their sources say of them now is kept beside the cursor.

A file that was edited just before a refresh is read once more by the next one, which learns only that its time can be
trusted. Writing that into ``source_state`` would publish a snapshot for it. It goes into the checkpoint instead, and
into the table with the next chunk that is written anyway.

An entry says "the bytes with this hash were read in this state". It counts while the store holds the document with that
hash, so that it holds for whatever snapshot or version the checkpoint stands beside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from lodestream.pipeline.sources.protocol import KnownDocument, SourceState

MAX_SETTLED: Final = 32
"""The pointer is read and written whole, so it holds few. More are worth a snapshot."""

KEY: Final = "settled"
"""In the checkpoint of a source."""

_STATE: Final = ("source_version", "size_bytes", "mtime_ns", "ctime_ns", "object_id")

Entries = dict[str, dict[str, Any]]
"""By doc_id; JSON values."""


class SettledStates:
    """The entries of all sources during a run."""

    def __init__(self, checkpoint: Mapping[str, Mapping[str, Any]], *, touched: Collection[str]) -> None:
        """Args:
        checkpoint: the published one, by source.
        touched: doc_ids that the run looks at or deletes; it will know more of them.
        """
        self._entries: dict[str, Entries] = {
            source: {doc_id: entry for doc_id, entry in seen.get(KEY, {}).items() if doc_id not in touched}
            for source, seen in checkpoint.items()
        }

    def keep(self, outcomes: Iterable[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> bool:
        """Takes documents up that came out the same.

        Args:
            outcomes: columns of ``stages.READ_SCHEMA``.
            rows: their rows of ``source_state`` so far, by doc_id.

        Returns:
            False if a row has to be written after all: there are too many, or the table does not have them so.
        """
        changed = []
        for outcome in outcomes:
            row = rows.get(outcome["doc_id"])
            if row is None or not _holds(row, outcome["content_hash"]):
                return False
            if any(row[name] != outcome[name] for name in _STATE):
                changed.append(outcome)
        if len(changed) + sum(len(entries) for entries in self._entries.values()) > MAX_SETTLED:
            return False
        for outcome in changed:
            entry = {name: outcome[name] for name in _STATE} | {"content_hash": outcome["content_hash"].hex()}
            self._entries.setdefault(outcome["source"], {})[outcome["doc_id"]] = entry
        return True

    def take_all(self) -> list[dict[str, Any]]:
        """Hands all over as outcomes, for a chunk that is written; none stays."""
        taken = [
            {"doc_id": doc_id, "source": source, "quarantine_reason": None}
            | entry
            | {"content_hash": bytes.fromhex(entry["content_hash"])}
            for source, entries in self._entries.items()
            for doc_id, entry in entries.items()
        ]
        self._entries.clear()
        return taken

    def checkpoint(self, source: str) -> dict[str, Any]:
        """What the checkpoint of a source says of them; {} where there is none."""
        entries = self._entries.get(source)
        return {KEY: entries} if entries else {}


def drop_stale(outcomes: Iterable[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of ``SettledStates.take_all`` that count for the ``rows`` of ``source_state``, by doc_id."""
    return [
        outcome
        for outcome in outcomes
        if (row := rows.get(outcome["doc_id"])) is not None and _holds(row, outcome["content_hash"])
    ]


def settle(known: KnownDocument, entry: Mapping[str, Any]) -> KnownDocument:
    """What is known of a document, with the state of its ``entry`` where that counts."""
    if entry["content_hash"] != known.content_hash.hex():
        return known
    version, size_bytes, mtime_ns, ctime_ns, object_id = (entry[name] for name in _STATE)
    state = SourceState(
        version=version, size_bytes=size_bytes, mtime_ns=mtime_ns, ctime_ns=ctime_ns, object_id=object_id
    )
    return KnownDocument(state=state, content_hash=known.content_hash)


def settle_row(row: dict[str, Any], checkpoint: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row of ``source_state``, with the state of its entry in the published checkpoint where that counts."""
    entry = checkpoint.get(row["source"], {}).get(KEY, {}).get(row["doc_id"])
    if entry is None or not _holds(row, bytes.fromhex(entry["content_hash"])):
        return row
    return row | {name: entry[name] for name in _STATE}


def _holds(row: Mapping[str, Any], content_hash: bytes) -> bool:
    return bool(row["content_hash"] == content_hash and row["quarantine_reason"] is None)
