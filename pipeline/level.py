"""Bringing a feature version level with the one that is served: documents that differ are computed from the stored
texts, chunk by chunk, and documents that the served one does not have go.

No source is asked. What the version has is compared with what is published now, so that it does not matter how the
difference came about: an empty version, a build that was killed, refreshes since, a rollback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.pipeline.changes import PlannedRead
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.dataflow import choose_executor, make_executor
from lodestream.pipeline.gap import find_gap
from lodestream.pipeline.sources.protocol import Candidate, SourceState
from lodestream.pipeline.stages import QUARANTINED, Reading, StageOutput
from lodestream.pipeline.stored_texts import StoredTexts, read_formats
from lodestream.pipeline.work import Meter, ShowProgress, cut_work
from lodestream.schema import DOCUMENTS_SCHEMA
from lodestream.storage.store import Snapshot, VersionWriter

_BYTES_A_TOKEN: Final = 4


@dataclass(slots=True, kw_only=True)
class Progress:
    """What was done: documents computed and removed, those that the version cannot use, and what was encoded.

    ``is_level``  whether nothing was left to do
    """

    computed: int = 0
    removed: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    counts: EncodeCounts = field(default_factory=EncodeCounts)
    is_level: bool = False

    def add(self, other: Progress) -> None:
        """Adds what a later turn did."""
        self.computed += other.computed
        self.removed += other.removed
        self.failed += other.failed
        self.counts.add(other.counts)
        self.is_level = other.is_level


class Leveller:
    """Computes what a version lacks of the one that is served, under one hold of the lease.

    Finished chunks are kept whatever ends it.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        writer: VersionWriter,
        served: Snapshot,
        *,
        run_id: str,
        show_progress: ShowProgress | None,
        note: Callable[[str], None],
    ) -> None:
        """Args:
        loaded: the configuration; of it the executor, threads and chunks.
        writer: of the version.
        served: what is published.
        run_id: of whoever does it.
        show_progress: called after every micro-batch.
        note: called with the executor and why.
        """
        self._loaded = loaded
        self.writer = writer
        self._served = served
        self._run_id = run_id
        self._show_progress = show_progress
        self._note = note
        self.gap = find_gap(served, writer.base)

    def bring_level(self, featurizer: Featurizer, *, is_over: Callable[[], bool] = lambda: False) -> Progress:
        """Closes the gap.

        Args:
            featurizer: the version's.
            is_over: asked after each chunk; True ends it, with the chunks so far.
        """
        done = Progress()
        if self.gap.extra:
            self.writer.remove_documents(self.gap.extra)
            done.removed = len(self.gap.extra)
        reads = [_plan_read(row) for batch in self.gap.stale.to_batches() for row in batch.to_pylist()]
        if reads:
            self._run_chunks(reads, featurizer, done, is_over)
        done.is_level = done.computed == len(reads)
        self.writer.finish(is_level=done.is_level)
        return done

    def _run_chunks(
        self, reads: Sequence[PlannedRead], featurizer: Featurizer, done: Progress, is_over: Callable[[], bool]
    ) -> None:
        config = self._loaded.config
        total_bytes = sum(read.candidate.size_bytes for read in reads)
        kind, why = choose_executor(config.run, total_bytes=total_bytes, num_cores=os.cpu_count() or 1)
        self._note(f"executor {kind}: {why}")
        texts = StoredTexts(snapshot=self._served, formats=read_formats(self._loaded))
        reading = Reading(readers={read.candidate.source: texts for read in reads}, vanished={})
        executor = make_executor(kind, featurizer, config.run, reading, num_threads=config.encoder.num_threads)
        meter = Meter(len(reads), total_bytes, self._show_progress)
        # A segment that both versions encode alike is taken over; of another width none is.
        others = [self._served] if self._served.dim == featurizer.model.dim else []
        try:
            for chunk in cut_work(config.run, reads, num_workers=executor.num_workers):
                indexes = [self.writer.base, *others]
                output = executor.run_chunk(chunk, indexes, run_id=self._run_id, on_progress=meter.advance)
                done.failed += self._write(output, featurizer)
                done.computed += len(chunk)
                done.counts.add(output.counts)
                if is_over():
                    return
        finally:
            executor.close()

    def _write(self, output: StageOutput, featurizer: Featurizer) -> list[dict[str, str]]:
        """Stages a chunk; returns the documents that the version cannot use."""
        failed = output.select(QUARANTINED)
        self.writer.write_chunk(
            features=output.features.combine_chunks(),
            documents=pa.concat_tables([self._keep_reasons(output.documents), self._describe(failed, featurizer)]),
            deleted_doc_ids=(),
        )
        return [{"doc_id": row["doc_id"], "reason": row["quarantine_reason"]} for row in failed]

    def _keep_reasons(self, documents: pa.Table) -> pa.Table:
        """A document in quarantine has the features of its last text that worked, and stays in quarantine."""
        places = pc.index_in(documents["doc_id"], value_set=self.gap.stale["doc_id"].combine_chunks())
        reasons = self.gap.stale["quarantine_reason"].take(places)
        column = DOCUMENTS_SCHEMA.get_field_index("quarantine_reason")
        return documents.set_column(column, DOCUMENTS_SCHEMA.field(column), reasons)

    def _describe(self, failed: Sequence[Mapping[str, Any]], featurizer: Featurizer) -> pa.Table:
        """Rows of documents that this version cannot use: with their text, and without a feature."""
        rows = []
        for outcome in failed:
            stored = self._served.get_document(outcome["doc_id"])
            assert stored is not None, "it was read from there"
            row = {name: stored[name] for name in DOCUMENTS_SCHEMA.names}
            row |= {f"num_{name}": 0 for name in ("tokens", "segments", "topics", "paragraphs", "sentences")}
            row |= {"quarantine_reason": outcome["quarantine_reason"], "feature_version": featurizer.feature_version}
            rows.append(row | {"updated_at": datetime.now(UTC), "run_id": self._run_id})
        return pa.Table.from_pylist(rows, schema=DOCUMENTS_SCHEMA)


def _plan_read(row: Mapping[str, Any]) -> PlannedRead:
    candidate = Candidate(
        doc_id=row["doc_id"],
        source=row["source"],
        uri=row["uri"],
        state=SourceState(version=row["source_version"]),
        size_bytes=_BYTES_A_TOKEN * row["num_tokens"] + 1,
        locator=None,
    )
    return PlannedRead(candidate=candidate, known=None, is_new=True)
