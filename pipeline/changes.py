"""What a run has to do: what the sources name against the states of the documents that the store holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from lodestream.errors import MassDeletionRefused
from lodestream.pipeline.sources.protocol import Candidate

MAX_DELETED_SHARE: Final = 0.05
MIN_GUARDED_DELETIONS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentState:
    """What the store knows of a document."""

    content_hash: bytes
    source_version: str
    feature_version: str
    quarantine_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRead:
    """A document to look at. ``known`` is its state in the store that still counts: None where its features would have
    to be computed again whatever it holds (a new document, another feature version)."""

    candidate: Candidate
    known: DocumentState | None
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The reads of a run in order of doc_id, and the documents that are gone."""

    reads: tuple[PlannedRead, ...]
    deleted: tuple[str, ...]


def read_states(table: pa.Table) -> dict[str, DocumentState]:
    """Document states by doc_id, from a snapshot's ``document_states()``."""
    columns = ("content_hash", "source_version", "feature_version", "quarantine_reason")
    ids = table.column("doc_id").to_pylist()
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return {
        doc_id: DocumentState(content_hash=h, source_version=s, feature_version=f, quarantine_reason=q)
        for doc_id, (h, s, f, q) in zip(ids, rows, strict=True)
    }


def plan_changes(
    candidates: Sequence[Candidate],
    states: Mapping[str, DocumentState],
    *,
    feature_version: str,
    allow_mass_delete: bool = False,
) -> Changes:
    """Pairs the listing with what the store holds.

    Raises:
        MassDeletionRefused: more documents vanished than a mishap at the source should be able to delete.
    """
    listed = {candidate.doc_id for candidate in candidates}
    deleted = tuple(sorted(states.keys() - listed))
    limit = max(MIN_GUARDED_DELETIONS, int(MAX_DELETED_SHARE * len(states)))
    if not allow_mass_delete and deleted and (not listed or len(deleted) > limit):
        raise MassDeletionRefused(
            f"{len(deleted)} of {len(states)} documents are no longer listed by their source",
            "if they are really gone, run again with --allow-mass-delete; else check the source's path and patterns",
        )
    reads = []
    for candidate in candidates:
        state = states.get(candidate.doc_id)
        counts = state if state is not None and state.feature_version == feature_version else None
        reads.append(PlannedRead(candidate=candidate, known=counts, is_new=state is None))
    return Changes(reads=tuple(reads), deleted=deleted)


def cut_chunks(
    reads: Sequence[PlannedRead], *, max_documents: int, max_bytes: int
) -> Iterator[tuple[PlannedRead, ...]]:
    """Runs of reads that are committed together: at most one chunk of work is lost when a run is killed."""
    chunk: list[PlannedRead] = []
    size_bytes = 0
    for read in reads:
        if chunk and (len(chunk) >= max_documents or size_bytes + read.candidate.size_bytes > max_bytes):
            yield tuple(chunk)
            chunk, size_bytes = [], 0
        chunk.append(read)
        size_bytes += read.candidate.size_bytes
    if chunk:
        yield tuple(chunk)
