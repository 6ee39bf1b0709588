"""A run: lists the sources, computes what is new or changed, publishes it in one step.

A first run is the backfill; a later one does the same with fewer documents to compute. Work is staged chunk by chunk,
so that a killed run is continued by the next; readers see the published snapshot until the last step.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.errors import QuarantineShareExceeded, SourceContract
from lodestream.pipeline.changes import Changes, DocumentState, PlannedRead, cut_chunks, plan_changes, read_states
from lodestream.pipeline.config import LoadedConfig
from lodestream.pipeline.dataflow import choose_executor, make_executor
from lodestream.pipeline.executors import Executor, Progress
from lodestream.pipeline.report import RunReport
from lodestream.pipeline.reuse import SegmentIndex
from lodestream.pipeline.session import make_featurizer, read_published, set_threads
from lodestream.pipeline.sources.catalog import open_sources
from lodestream.pipeline.sources.protocol import Candidate, KnownDocument, Source
from lodestream.pipeline.stages import Readers, StageOutput
from lodestream.schema import DOCUMENTS_SCHEMA
from lodestream.storage.migration import derive_states
from lodestream.storage.store import FeatureStore, Snapshot, Transaction

ShowProgress = Callable[[Progress], None]


def run(
    loaded: LoadedConfig,
    *,
    allow_mass_delete: bool = False,
    show_progress: ShowProgress | None = None,
    show_note: Callable[[str], None] | None = None,
) -> RunReport:
    """Brings the store up to date with its sources and publishes the result.

    Args:
        loaded: the configuration.
        allow_mass_delete: carry out deletions that the guard would refuse.
        show_progress: called after every micro-batch.
        show_note: called with sentences worth knowing while it runs (executor and why, work taken over).

    Raises:
        LodestreamError: see lodestream.errors; nothing is published then, and finished chunks are kept for the next
            run.
    """
    started = time.perf_counter()
    note = show_note or (lambda _: None)
    location = loaded.store_location
    pointer = read_published(location)
    published = pointer if pointer is not None and pointer.sequence else None
    sources = open_sources(loaded)
    candidates, warnings = _list_sources(sources)
    if not candidates and published is None:
        raise _nothing_listed(loaded)
    num_threads = set_threads(loaded.config.encoder.num_threads)
    featurizer = make_featurizer(loaded, published.recipe if published else None)
    report = RunReport(
        run_id=_name_run(),
        kind="refresh" if published else "backfill",
        seen=len(candidates),
        warnings=warnings,
        snapshot_before=published.sequence if published else None,
    )
    _note_feature_version(note, featurizer, published.feature_version if published else None)
    store = FeatureStore.open_or_create(location, dim=featurizer.model.dim)
    snapshot_before = store.open_snapshot() if published else None
    published_states = read_states(snapshot_before.document_states()) if snapshot_before else {}
    # Refuse before the transaction begins: a guard must not cost a killed run its staged chunks.
    plan_changes(candidates, published_states, feature_version="", allow_mass_delete=allow_mass_delete)
    transaction = store.begin(
        run_id=report.run_id,
        kind=report.kind,
        feature_version=featurizer.feature_version,
        recipe=featurizer.recipe,
    )
    work = _RunWork(
        loaded,
        featurizer=featurizer,
        transaction=transaction,
        report=report,
        published=snapshot_before,
        published_states=published_states,
        readers={name: source.reader() for name, source in sources.items()},
        num_threads=num_threads,
        show_progress=show_progress,
        note=note,
    )
    work.carry_out(candidates)
    report.seconds = time.perf_counter() - started
    summary = {name: value for name, value in report.as_dict().items() if name != "quarantined"}
    snapshot = transaction.publish(checkpoint={}, run=summary | {"ended_at": datetime.now(UTC).isoformat()})
    report.snapshot_after = snapshot.sequence
    report.seconds = time.perf_counter() - started
    return report


class _RunWork:
    """The chunks of one run."""

    def __init__(
        self,
        loaded: LoadedConfig,
        *,
        featurizer: Featurizer,
        transaction: Transaction,
        report: RunReport,
        published: Snapshot | None,
        published_states: Mapping[str, DocumentState],
        readers: Readers,
        num_threads: int,
        show_progress: ShowProgress | None,
        note: Callable[[str], None],
    ) -> None:
        self._config = loaded.config
        self._featurizer = featurizer
        self._transaction = transaction
        self._report = report
        self._published = published
        self._published_states = published_states
        self._readers = readers
        self._num_threads = num_threads
        self._show_progress = show_progress
        self._note = note

    def carry_out(self, candidates: Sequence[Candidate]) -> None:
        """Stages every chunk; the caller publishes."""
        states = read_states(self._transaction.base.document_states())
        changes = plan_changes(
            candidates, states, feature_version=self._featurizer.feature_version, allow_mass_delete=True
        )
        report = self._report
        report.resumed = self._count_resumed(changes, states)
        if report.resumed:
            self._note(f"continuing a run that was interrupted: {report.resumed} documents are done already")
        report.deleted = len(self._published_states.keys() - {candidate.doc_id for candidate in candidates})
        if changes.deleted:
            self._transaction.write_chunk(
                features=self._empty_features(),
                documents=DOCUMENTS_SCHEMA.empty_table(),
                deleted_doc_ids=changes.deleted,
            )
        self._run_chunks(changes)
        share = report.num_quarantined / max(1, report.seen)
        if share > self._config.run.max_quarantined_share:
            raise QuarantineShareExceeded(
                f"{report.num_quarantined} of {report.seen} documents failed, more than run.max_quarantined_share = "
                f"{self._config.run.max_quarantined_share:g}; the first: {_first_failure(report)}",
                "mend or exclude them, or raise run.max_quarantined_share; nothing was published",
            )

    def _count_resumed(self, changes: Changes, states: Mapping[str, DocumentState]) -> int:
        if not self._transaction.resumed:
            return 0
        # Only documents whose file still holds what the killed run saw; the others are computed again.
        return sum(
            1
            for read in changes.reads
            if read.known is not None
            and read.known.quarantine_reason is None
            and self._published_states.get(read.candidate.doc_id) != read.known
            and states[read.candidate.doc_id].source_version == read.candidate.state.version
        )

    def _run_chunks(self, changes: Changes) -> None:
        reads = changes.reads
        total_bytes = sum(read.candidate.size_bytes for read in reads)
        pending_bytes = sum(read.candidate.size_bytes for read in reads if read.known is None)
        config = self._config.run
        kind, why = choose_executor(config, total_bytes=pending_bytes, num_cores=os.cpu_count() or 1)
        self._report.executor, self._report.executor_reason = kind, why
        self._report.backend = f"torch-cpu/{self._featurizer.precision}"
        self._note(f"executor {kind}: {why}; {self._report.backend}, {self._num_threads} threads")
        executor = make_executor(kind, self._featurizer, config, self._readers)
        meter = _Meter(len(reads), total_bytes, self._show_progress)
        try:
            for chunk in cut_chunks(reads, max_documents=config.chunk_documents, max_bytes=config.chunk_bytes):
                self._run_chunk(executor, chunk, meter)
        finally:
            executor.close()

    def _run_chunk(self, executor: Executor, chunk: Sequence[PlannedRead], meter: _Meter) -> None:
        output = executor.run_chunk(chunk, self._indexes(), run_id=self._report.run_id, on_progress=meter.advance)
        started = time.perf_counter()
        self._write(output, {read.candidate.doc_id: read.candidate for read in chunk})
        output.counts.clock("write", started)
        self._report.counts.add(output.counts)
        tally = self._report.num_by_status
        for status, number in output.num_by_status.items():
            tally[status] = tally.get(status, 0) + number
        reasons = zip(
            output.quarantined.column("doc_id").to_pylist(),
            output.quarantined.column("quarantine_reason").to_pylist(),
            strict=True,
        )
        self._report.quarantined += [{"doc_id": doc_id, "reason": reason} for doc_id, reason in reasons]

    def _indexes(self) -> list[SegmentIndex]:
        """Where segments are looked up: what is staged so far, then what was published before, whose rows an earlier
        chunk or a deletion may have replaced (a paragraph that moves, a document that is renamed)."""
        published = [self._published] if self._published is not None else []
        return [self._transaction.base, *published]

    def _write(self, output: StageOutput, candidates: Mapping[str, Candidate]) -> None:
        if not output.documents.num_rows and not output.quarantined.num_rows:
            return
        kept = [self._quarantine_row(row) for row in output.quarantined.to_pylist()]
        documents = pa.concat_tables([output.documents, pa.Table.from_pylist(kept, schema=DOCUMENTS_SCHEMA)])
        self._transaction.write_chunk(
            features=output.features,
            documents=documents,
            deleted_doc_ids=(),
            keep_features_of=[row["doc_id"] for row in kept],
            source_state=self._state_rows(documents, candidates),
        )

    def _state_rows(self, documents: pa.Table, candidates: Mapping[str, Candidate]) -> pa.Table:
        """What the listing said of the documents of a chunk."""
        columns = ("doc_id", "source", "source_version", "content_hash", "quarantine_reason", "updated_at")
        derived = derive_states(documents.select(columns), run_id=self._report.run_id)
        listed = [candidates[doc_id].state for doc_id in documents["doc_id"].to_pylist()]
        for name in ("size_bytes", "mtime_ns"):
            values = pa.array([getattr(state, name) for state in listed], pa.int64())
            derived = derived.set_column(derived.column_names.index(name), derived.schema.field(name), values)
        return derived

    def _quarantine_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The document's row with the reason; text and counts of the last version that worked stay."""
        names = ("doc_id", "source", "uri", "content_hash", "source_version", "quarantine_reason")
        stored = self._transaction.base.get_document(row["doc_id"])
        fresh = {
            "title": "",
            "text": "",
            "num_tokens": 0,
            "num_segments": 0,
            "num_topics": 0,
            "num_paragraphs": 0,
            "num_sentences": 0,
        }
        return (stored or fresh) | {
            **{name: row[name] for name in names},
            "feature_version": self._featurizer.feature_version,
            "updated_at": datetime.now(UTC),
            "run_id": self._report.run_id,
        }

    def _empty_features(self) -> pa.Table:
        from lodestream.schema import features_schema

        return features_schema(self._featurizer.model.dim).empty_table()


class _Meter:
    """Turns micro-batches into progress."""

    def __init__(self, documents_total: int, bytes_total: int, show: ShowProgress | None) -> None:
        self._documents_total = documents_total
        self._bytes_total = bytes_total
        self._documents_done = 0
        self._bytes_done = 0
        self._counts = EncodeCounts()
        self._started = time.perf_counter()
        self._show = show

    def advance(self, reads: Sequence[PlannedRead], counts: EncodeCounts) -> None:
        self._documents_done += len(reads)
        self._bytes_done += sum(read.candidate.size_bytes for read in reads)
        self._counts.add(counts)
        if self._show is not None:
            self._show(
                Progress(
                    documents_done=self._documents_done,
                    documents_total=self._documents_total,
                    bytes_done=self._bytes_done,
                    bytes_total=self._bytes_total,
                    counts=self._counts,
                    seconds=time.perf_counter() - self._started,
                )
            )


def _list_sources(sources: Mapping[str, Source]) -> tuple[list[Candidate], list[str]]:
    candidates: list[Candidate] = []
    warnings: list[str] = []
    for source in sources.values():
        changes = source.changes(None, _NothingKnown())
        candidates += changes.upserts
        warnings += changes.observations.warnings
    return sorted(candidates, key=lambda candidate: candidate.doc_id), warnings


class _NothingKnown:
    """The states of a store that knows no document."""

    def load(self) -> Mapping[str, KnownDocument]:
        return {}

    def find(self, doc_ids: Collection[str]) -> Mapping[str, KnownDocument]:
        return {}


def _nothing_listed(loaded: LoadedConfig) -> SourceContract:
    where = "; ".join(
        f"{loaded.resolve(source.path)} ({', '.join(source.include)})" for source in loaded.config.sources.values()
    )
    return SourceContract(
        f"no document was found in {where}",
        "check path and include in lodestream.toml, or put a .md, .rst or .txt file there",
    )


def _note_feature_version(note: Callable[[str], None], featurizer: Featurizer, published: str | None) -> None:
    if published and published != featurizer.feature_version:
        note(
            f"the feature version changes from {published} to {featurizer.feature_version} (model or a setting that "
            "the features depend on): every document is looked at again"
        )


def _first_failure(report: RunReport) -> str:
    if not report.quarantined:
        return "as in the last run (lodestream status)"
    first = report.quarantined[0]
    return f"{first['doc_id']}: {first['reason']}"


def _name_run() -> str:
    """Sortable by time, unique across machines."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
