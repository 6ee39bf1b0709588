"""What the next run has to do, found out without writing anything or taking a lease."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lodestream.actors.featurizer import Featurizer
from lodestream.errors import SourceContract
from lodestream.pipeline.changes import (
    MoveKey,
    PlannedRead,
    Survey,
    find_unconfigured,
    key_of_move,
    plan_reads,
    survey_source,
)
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.feature_version import choose_featurizer
from lodestream.pipeline.session import fix_gate, read_published
from lodestream.pipeline.sources.catalog import open_sources
from lodestream.pipeline.sources.protocol import Source
from lodestream.pipeline.states import DocumentState, find_documents, find_rows, read_quarantine
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore, Snapshot

_MOVE_COLUMNS = ("doc_id", "source", "uri", "content_hash", "feature_version", "quarantine_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What the sources said, held against what is published.

    ``pointer, published``  None while nothing is published
    ``surveys``       one a source
    ``unconfigured``  documents of sources that the configuration has no more
    ``states``        what the store holds of the documents that may have changed
    ``quarantined``   documents that were in quarantine at the last run
    ``vanished``      what documents that are deleted would keep under another name
    ``version_note``  a sentence where the configuration asks for another feature version than the served one; or ""
    """

    pointer: PointerRecord | None
    published: Snapshot | None
    featurizer: Featurizer
    sources: Mapping[str, Source]
    surveys: Sequence[Survey]
    unconfigured: Sequence[str]
    states: Mapping[str, DocumentState]
    quarantined: frozenset[str]
    vanished: Mapping[MoveKey, str]
    version_note: str

    @property
    def deleted(self) -> list[str]:
        """All documents that go, by doc_id."""
        return sorted({*self.unconfigured, *(doc_id for survey in self.surveys for doc_id in survey.deleted)})

    def reads(self) -> list[PlannedRead]:
        """All documents to look at, by doc_id."""
        candidates = [candidate for survey in self.surveys for candidate in survey.changes.upserts]
        candidates.sort(key=lambda candidate: candidate.doc_id)
        return plan_reads(candidates, self.states, feature_version=self.featurizer.feature_version)

    def count_moved(self, survey: Survey) -> int:
        """How many of a source's deleted documents have come up under another name. Reads the new documents."""
        new = [candidate for candidate in survey.changes.upserts if candidate.doc_id not in self.states]
        bodies = self.sources[survey.name].reader().read(new)
        keys = {
            key_of_move(survey.name, body.content_hash, candidate.uri)
            for candidate, body in zip(new, bodies, strict=True)
        }
        return len(keys & self.vanished.keys())

    def notes(self) -> list[str]:
        """Sentences worth knowing before the run."""
        notes = [self.version_note] if self.version_note else []
        if self.pointer:
            notes += [
                f"{survey.name}: every document is looked at: {survey.reason}"
                for survey in self.surveys
                if survey.is_complete
            ]
        return notes


def make_plan(loaded: LoadedConfig, *, retry: Collection[str] | None = None, writes: bool = False) -> RunPlan:
    """Asks every source what changed.

    Args:
        loaded: the configuration.
        retry: documents in quarantine that are tried again; None takes those whose time has come.
        writes: whether the plan will be carried out: then what a feature version fixes is measured, if it is not yet.

    Raises:
        SourceError: a source cannot be reached or listed, or a first run finds no document.
        StoreError: the store cannot be read.
        ModelError: the model is not usable.
        FeatureVersionMismatch: the configuration asks for features that no version of the store has.
    """
    found = read_published(loaded.store_location)
    pointer = found if found is not None and found.sequence else None
    published = FeatureStore.open(loaded.store_location).open_snapshot() if pointer else None
    featurizer, note = choose_featurizer(loaded, pointer)
    if writes and pointer is None:  # later on what is published says it
        staged = [found.staged.recipe] if found is not None and found.staged is not None else []
        featurizer = fix_gate(featurizer, staged, num_threads=loaded.config.encoder.num_threads)
    sources = open_sources(loaded)
    quarantined = _read_quarantined(pointer, published)
    checkpoint = pointer.checkpoint if pointer else {}
    surveys = [
        survey_source(
            source,
            published,
            checkpoint.get(name, {}),
            retry=_choose_retries(quarantined, name, retry),
        )
        for name, source in sources.items()
    ]
    if pointer is None and not any(survey.changes.num_seen for survey in surveys):
        raise _nothing_listed(sources)
    unconfigured = find_unconfigured(sources, checkpoint, published)
    candidates = [candidate.doc_id for survey in surveys for candidate in survey.changes.upserts]
    if candidates:
        featurizer.check_model()
    states = find_documents(published, candidates)
    deleted = [*unconfigured, *(doc_id for survey in surveys for doc_id in survey.deleted)]
    has_new = len(states) < len(candidates)
    return RunPlan(
        pointer=pointer,
        published=published,
        featurizer=featurizer,
        sources=sources,
        surveys=surveys,
        unconfigured=unconfigured,
        states=states,
        quarantined=frozenset(quarantined),
        vanished=_find_vanished(published, deleted, featurizer.feature_version) if has_new else {},
        version_note=note,
    )


def _read_quarantined(pointer: PointerRecord | None, published: Snapshot | None) -> dict[str, dict[str, Any]]:
    """Rows of ``source_state`` of the documents in quarantine, by doc_id. The table is not even opened where the last
    run left nobody there."""
    if pointer is None or not pointer.run.get("documents", {}).get("quarantined", 1):
        return {}
    return {row["doc_id"]: row for row in read_quarantine(published)}


def _choose_retries(
    quarantined: Mapping[str, Mapping[str, Any]], source: str, retry: Collection[str] | None
) -> frozenset[str]:
    """Which documents of one source are tried again: of another source's names it could make nothing."""
    now = datetime.now(UTC)
    return frozenset(
        doc_id
        for doc_id, row in quarantined.items()
        if row["source"] == source and (row["retry_at"] <= now if retry is None else doc_id in retry)
    )


def _find_vanished(published: Snapshot | None, deleted: Sequence[str], feature_version: str) -> dict[MoveKey, str]:
    if published is None or not deleted:
        return {}
    rows = find_rows(published, "documents", deleted, _MOVE_COLUMNS).sort_by("doc_id").to_pylist()
    return {
        key_of_move(row["source"], row["content_hash"], row["uri"]): row["doc_id"]
        for row in rows
        if row["feature_version"] == feature_version and row["quarantine_reason"] is None
    }


def _nothing_listed(sources: Mapping[str, Source]) -> SourceContract:
    where = "; ".join(f"{name}: {source.check().detail}" for name, source in sources.items())
    return SourceContract(
        f"no document was found ({where})",
        "check path and include in lodestream.toml, or put a .md, .rst or .txt file there",
    )
