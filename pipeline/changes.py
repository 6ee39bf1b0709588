"""What a run has to do: what the sources name against what the store knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from lodestream.errors import MassDeletionRefused
from lodestream.pipeline.settled import KEY
from lodestream.pipeline.sources.protocol import Candidate, Source, SourceChanges
from lodestream.pipeline.states import DocumentState, StoredStates, find_sources
from lodestream.storage.store import Snapshot

MAX_DELETED_SHARE: Final = 0.05
MIN_GUARDED_DELETIONS: Final = 50

MoveKey = tuple[str, bytes, str]
"""What a moved document keeps: its source, the hash of its bytes, and the suffix that says what format they are in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRead:
    """A document to look at. ``known`` is its state in the store that still counts: None where its features would have
    to be computed again whatever it holds (a new document, another feature version)."""

    candidate: Candidate
    known: DocumentState | None
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one source said.

    ``incarnation``   of the source as it was asked
    ``is_complete``   whether everything was named, and not only what changed since the cursor
    ``reason``        why everything was named, for people; "" where the cursor counted
    ``deleted``       doc_ids that the store has and the source gives evidence not to have any more
    """

    name: str
    incarnation: str
    is_complete: bool
    reason: str
    changes: SourceChanges
    deleted: frozenset[str]

    def checkpoint(self) -> dict[str, Any]:
        """What is published for the next run, and for ``status``; JSON values."""
        seen = self.changes.observations
        return {
            "incarnation": self.incarnation,
            "cursor": dict(self.changes.cursor),
            "mode": seen.mode,
            "watermark": seen.watermark.isoformat() if seen.watermark else None,
            "held_back_s": seen.held_back_s,
            "num_future": seen.num_future,
            "num_swept": seen.num_swept,
        }


def survey_source(
    source: Source,
    published: Snapshot | None,
    checkpoint: Mapping[str, Any],
    *,
    retry: Collection[str] = (),
) -> Survey:
    """Asks one source what may have changed.

    Args:
        source: the source.
        published: what the store holds.
        checkpoint: what ``Survey.checkpoint`` gave when that was published; {} where nothing was.
        retry: doc_ids in quarantine that are to be tried again.

    Raises:
        SourceError: it cannot be reached or listed in full.
    """
    known = StoredStates(published, source.name, settled=checkpoint.get(KEY))
    incarnation = source.incarnation()
    reason = _why_everything(incarnation, checkpoint)
    changes = source.changes(None if reason else checkpoint["cursor"], known, retry=retry)
    return Survey(
        name=source.name,
        incarnation=incarnation,
        is_complete=bool(reason),
        reason=reason,
        changes=changes,
        deleted=_find_deleted(changes, known),
    )


def find_unconfigured(names: Collection[str], checkpoint: Mapping[str, Any], published: Snapshot | None) -> list[str]:
    """doc_ids of sources that were configured when the store was published and are not any more."""
    # After a repair the checkpoint is empty: then the documents themselves say whose they are.
    known = set(checkpoint) or find_sources(published)
    gone = sorted(known - set(names))
    return sorted(doc_id for name in gone for doc_id in StoredStates(published, name).doc_ids())


def _why_everything(incarnation: str, checkpoint: Mapping[str, Any]) -> str:
    if not checkpoint:
        return "first look at this source"
    if checkpoint["incarnation"] != incarnation:
        return f"the source is another one than at the last run ({checkpoint['incarnation']} -> {incarnation})"
    return ""


def _find_deleted(changes: SourceChanges, known: StoredStates) -> frozenset[str]:
    deleted = frozenset[str]()
    if changes.listed is not None:
        deleted |= known.doc_ids() - changes.listed
    if changes.tombstones:
        named = changes.tombstones - {candidate.doc_id for candidate in changes.upserts}
        deleted |= frozenset(known.find(named))
    return deleted


def guard_deletions(
    surveys: Sequence[Survey],
    count_moved: Callable[[Survey], int],
    published: Snapshot | None,
    *,
    unconfigured: Sequence[str] = (),
) -> None:
    """Refuses deletions that look like a mishap at the source, or in the configuration.

    Args:
        surveys: what the sources said.
        count_moved: how many of a source's deleted documents have come up under another name; may read them, and is
            asked only where it decides.
        published: what the store holds.
        unconfigured: documents of sources that are not configured any more.

    Raises:
        MassDeletionRefused: a source is empty, or more than max(50, 5 %) of its documents vanished, or so many of all
            documents with their sources.
    """
    for survey in surveys:
        num_deleted = len(survey.deleted)
        is_empty = survey.changes.listed is not None and not survey.changes.listed
        if not survey.deleted or (num_deleted <= MIN_GUARDED_DELETIONS and not is_empty):
            continue
        num_known = len(StoredStates(published, survey.name).doc_ids())
        if _are_many(num_deleted, num_known) and not is_empty:
            num_deleted -= count_moved(survey)
        if is_empty or _are_many(num_deleted, num_known):
            raise MassDeletionRefused(
                f"{num_deleted} of {num_known} documents are no longer listed by their source {survey.name}",
                "if they are really gone, run again with --allow-mass-delete; else check the source's path and "
                "patterns",
            )
    if unconfigured and published is not None and _are_many(len(unconfigured), published.count_documents()):
        raise MassDeletionRefused(
            f"{len(unconfigured)} documents are of sources that are not configured any more, such as {unconfigured[0]}",
            "if they are to go, run again with --allow-mass-delete; else put the section [sources....] back",
        )


def _are_many(num_deleted: int, num_known: int) -> bool:
    return num_deleted > max(MIN_GUARDED_DELETIONS, MAX_DELETED_SHARE * num_known)


def plan_reads(
    candidates: Sequence[Candidate], states: Mapping[str, DocumentState], *, feature_version: str
) -> list[PlannedRead]:
    """Pairs candidates with what the store holds of them."""
    reads = []
    for candidate in candidates:
        state = states.get(candidate.doc_id)
        counts = state if state is not None and state.feature_version == feature_version else None
        reads.append(PlannedRead(candidate=candidate, known=counts, is_new=state is None))
    return reads


def key_of_move(source: str, content_hash: bytes, uri: str) -> MoveKey:
    """What is equal in a document and the one that it was moved from."""
    return source, content_hash, PurePosixPath(uri).suffix


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
