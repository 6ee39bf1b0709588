"""The work of a run: documents that changed through the dataflow, chunk by chunk, into an open transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.pipeline.changes import PlannedRead, cut_chunks
from lodestream.pipeline.config.settings import Config, RunConfig
from lodestream.pipeline.dataflow import choose_executor, make_executor
from lodestream.pipeline.executors import Executor, Progress
from lodestream.pipeline.process import return_free_memory
from lodestream.pipeline.report import RunReport
from lodestream.pipeline.reuse import SegmentIndex
from lodestream.pipeline.settled import SettledStates, drop_stale
from lodestream.pipeline.stages import (
    CHANGED,
    GONE,
    MOVED,
    NEW,
    QUARANTINED,
    SAME,
    STILL_QUARANTINED,
    Reading,
    StageOutput,
)
from lodestream.pipeline.states import build_state_rows, find_rows
from lodestream.schema import DOCUMENTS_SCHEMA, SOURCE_STATE_SCHEMA, features_schema, row_key
from lodestream.storage.store import Snapshot, Transaction

MIN_CHUNKS: Final = 8
MIN_CHUNK_DOCUMENTS: Final = 128
"""A run is cut into about eight chunks where each still has so many documents: a commit costs as much as encoding a few
documents, and a kill should not cost half of a burst."""

ShowProgress = Callable[[Progress], None]
"""Called after every micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done.

    ``reads``    documents to look at, by doc_id
    ``deleted``  documents that vanish
    """

    reads: Sequence[PlannedRead]
    deleted: Sequence[str]


class ChunkWriter:
    """Carries out the work of one run. Each chunk is committed on its own: a killed run loses one chunk at most."""

    def __init__(
        self,
        config: Config,
        *,
        featurizer: Featurizer,
        transaction: Transaction,
        reading: Reading,
        report: RunReport,
        published: Snapshot | None,
        settled: SettledStates,
        show_progress: ShowProgress | None,
        note: Callable[[str], None],
    ) -> None:
        self._config = config
        self._featurizer = featurizer
        self._transaction = transaction
        self._reading = reading
        self._report = report
        self._published = published
        self._settled = settled
        self._show_progress = show_progress
        self._note = note

    def carry_out(self, work: Work) -> None:
        """Stages everything; the caller publishes."""
        if work.deleted:
            self._transaction.remove_documents(work.deleted)
        if work.reads:
            self._run_chunks(work.reads)

    def _run_chunks(self, reads: Sequence[PlannedRead]) -> None:
        total_bytes = sum(read.candidate.size_bytes for read in reads)
        pending_bytes = sum(read.candidate.size_bytes for read in reads if read.known is None)
        config = self._config.run
        kind, why = choose_executor(config, total_bytes=pending_bytes, num_cores=os.cpu_count() or 1)
        self._report.executor, self._report.executor_reason = kind, why
        num_threads = self._config.encoder.num_threads
        threads = num_threads or os.cpu_count() or 1
        self._note(f"executor {kind}: {why}; {self._report.backend}, {threads} threads")
        executor = make_executor(kind, self._featurizer, config, self._reading, num_threads=num_threads)
        meter = Meter(len(reads), total_bytes, self._show_progress)
        try:
            for chunk in cut_work(config, reads, num_workers=executor.num_workers):
                self._run_chunk(executor, chunk, meter)
        finally:
            executor.close()

    def _run_chunk(self, executor: Executor, chunk: Sequence[PlannedRead], meter: Meter) -> None:
        output = executor.run_chunk(chunk, self._indexes(), run_id=self._report.run_id, on_progress=meter.advance)
        # What the encoder has left free would lie below what Lance takes to write, and what that leaves below the next.
        return_free_memory()
        started = time.perf_counter()
        self._write(output, output.select(MOVED))
        output.counts.clock("write", started)
        self._report.add(output)
        return_free_memory()

    def _indexes(self) -> list[SegmentIndex]:
        """Where segments are looked up: what is staged so far, then what was published before, whose rows an earlier
        chunk or a deletion may have replaced (a paragraph that moves, a document that is renamed)."""
        published = [self._published] if self._published is not None else []
        return [self._transaction.base, *published]

    def _write(self, output: StageOutput, moved: Sequence[Mapping[str, Any]]) -> None:
        base = self._transaction.base
        outcomes = output.select(NEW, CHANGED, MOVED, SAME, QUARANTINED, STILL_QUARANTINED)
        states = _find_states(base, outcomes)
        if output.count().keys() <= {SAME, GONE} and self._settled.keep(outcomes, states):
            return  # the checkpoint takes up what the sources said
        kept = [self._quarantine_row(base, row) for row in output.select(QUARANTINED)]
        features, documents = self._move(moved)
        self._transaction.write_chunk(
            features=pa.concat_tables([output.features, features]),
            documents=pa.concat_tables(
                [output.documents, pa.Table.from_pylist(kept, schema=DOCUMENTS_SCHEMA), documents]
            ),
            deleted_doc_ids=(),
            keep_features_of=[row["doc_id"] for row in kept],
            source_state=self._state_rows(base, outcomes, states),
        )

    def _state_rows(
        self, base: Snapshot, outcomes: Sequence[Mapping[str, Any]], states: Mapping[str, Mapping[str, Any]]
    ) -> pa.Table:
        """What the sources said of the documents, of those too that came out the same now or before."""
        settled = self._settled.take_all()
        rows = {**states, **(_find_states(base, settled) if settled else {})}
        return build_state_rows([*outcomes, *drop_stale(settled, rows)], rows, run_id=self._report.run_id)

    def _quarantine_row(self, base: Snapshot, row: Mapping[str, Any]) -> dict[str, Any]:
        """The document's row with the reason; text and counts of the last version that worked stay."""
        names = ("doc_id", "source", "uri", "content_hash", "source_version", "quarantine_reason")
        stored = base.get_document(row["doc_id"])
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

    def _move(self, moved: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, pa.Table]:
        """Feature rows and document rows of moved documents: those they had under their old names."""
        features, documents = [self._no_features()], [DOCUMENTS_SCHEMA.empty_table()]
        for row in moved:
            assert self._published is not None, "a move is found by what is published"
            rows = self._published.get_features(row["moved_from"])
            features.append(rename_features(rows, row, run_id=self._report.run_id))
            stored = self._published.get_document(row["moved_from"]) or {}
            changed = {name: row[name] for name in ("doc_id", "source", "uri", "source_version")}
            changed |= {"updated_at": datetime.now(UTC), "run_id": self._report.run_id}
            documents.append(pa.Table.from_pylist([stored | changed], schema=DOCUMENTS_SCHEMA))
        # One batch instead of several a document: what the store does to each batch it then does once.
        return pa.concat_tables(features).combine_chunks(), pa.concat_tables(documents)

    def _no_features(self) -> pa.Table:
        return features_schema(self._featurizer.model.dim).empty_table()


def _find_states(base: Snapshot, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of ``source_state`` of some documents, by doc_id."""
    doc_ids = [row["doc_id"] for row in outcomes]
    rows = find_rows(base, "source_state", doc_ids, SOURCE_STATE_SCHEMA.names).to_pylist()
    return {row["doc_id"]: row for row in rows}


def cut_work(config: RunConfig, reads: Sequence[PlannedRead], *, num_workers: int) -> Iterator[tuple[PlannedRead, ...]]:
    """The chunks of a run, as many times larger as encoders work at the same time."""
    max_documents = min(config.chunk_documents, max(MIN_CHUNK_DOCUMENTS, len(reads) // MIN_CHUNKS))
    return cut_chunks(reads, max_documents=max_documents * num_workers, max_bytes=config.chunk_bytes * num_workers)


def rename_features(rows: pa.Table, outcome: Mapping[str, Any], *, run_id: str) -> pa.Table:
    """Feature rows of one document under another name.

    Args:
        rows: its rows, of schema.features_schema(D).
        outcome: ``doc_id``, ``source`` and ``source_version`` that they get.
        run_id: the run that writes them.
    """
    places = zip(rows.column("granularity").to_pylist(), rows.column("ordinal").to_pylist(), strict=True)
    values = {
        "key": [row_key(outcome["source"], outcome["doc_id"], granularity, ordinal) for granularity, ordinal in places],
        "doc_id": [outcome["doc_id"]] * rows.num_rows,
        "source_version": [outcome["source_version"]] * rows.num_rows,
        "run_id": [run_id] * rows.num_rows,
    }
    for name, column in values.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array(column, rows.schema.field(name).type))
    return rows


class Meter:
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
