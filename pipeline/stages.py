"""The stages of the one dataflow as plain functions over Arrow tables: read, prepare, encode.

Both executors call these and nothing else, so that they cannot come to differ.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import EncodedBatch, Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.actors.prepared import PreparedSpans, spans_from_table
from lodestream.pipeline.changes import MoveKey, PlannedRead, key_of_move
from lodestream.pipeline.sources.protocol import NO_HASH, BodyReader, Candidate, ReadBody
from lodestream.schema import CONTENT_HASH_BYTES, DOCUMENTS_SCHEMA, features_schema

NEW: Final = "new"
CHANGED: Final = "changed"
SAME: Final = "same"
QUARANTINED: Final = "quarantined"
STILL_QUARANTINED: Final = "still quarantined"
"""Failed as before, on the same bytes: nothing to write."""
MOVED: Final = "moved"
"""The bytes of a document that vanished under another name: its features are taken over as they are."""
GONE: Final = "gone"
"""Vanished between listing and reading: nothing is done with it now, the next run sees."""

READ_SCHEMA: Final = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("uri", pa.string()),
        ("content_hash", pa.binary(CONTENT_HASH_BYTES)),
        ("source_version", pa.string()),
        ("text_format", pa.string()),
        ("text", pa.large_string()),
        ("status", pa.string()),
        ("quarantine_reason", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("object_id", pa.string()),
        ("moved_from", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the read stage needs; picklable.

    ``readers``   what reads the bodies of each source, by the source's name
    ``vanished``  documents that vanished, by what they would keep if they were moved
    """

    readers: Mapping[str, BodyReader]
    vanished: Mapping[MoveKey, str]


FindKnown = Callable[[Sequence[PreparedSpans]], dict[bytes, LeafVectors]]
"""Looks stored leaves up for the segments of some documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What the dataflow made of some documents.

    ``features``    rows of the documents that were new or changed
    ``documents``   their document rows
    ``outcomes``    rows of READ_SCHEMA, text left out: what became of every document
    """

    features: pa.Table
    documents: pa.Table
    outcomes: pa.Table
    counts: EncodeCounts

    def count(self) -> dict[str, int]:
        """Documents by status."""
        statuses = self.outcomes.column("status").combine_chunks()
        return {row["values"]: row["counts"] for row in pc.value_counts(statuses).to_pylist()}

    def select(self, *statuses: str) -> list[dict[str, Any]]:
        """The outcomes of these statuses."""
        chosen = pc.is_in(self.outcomes.column("status"), pa.array(statuses))
        rows: list[dict[str, Any]] = self.outcomes.filter(chosen).to_pylist()
        return rows


def read_documents(reads: Sequence[PlannedRead], reading: Reading) -> pa.Table:
    """Reads documents and tells what became of each: a table of READ_SCHEMA, text only where there is work.

    Raises:
        SourceError: a source as a whole cannot be read.
    """
    rows: dict[int, dict[str, object]] = {}
    by_source: dict[str, list[int]] = {}
    for place, read in enumerate(reads):
        if _is_same_unread(read):
            rows[place] = _describe_read(read, _body_unread(read.candidate), {})
        else:
            by_source.setdefault(read.candidate.source, []).append(place)
    for source, places in by_source.items():
        bodies = reading.readers[source].read([reads[place].candidate for place in places])
        for place, body in zip(places, bodies, strict=True):
            rows[place] = _describe_read(reads[place], body, reading.vanished)
    return pa.Table.from_pylist([rows[place] for place in range(len(reads))], schema=READ_SCHEMA)


def _is_same_unread(read: PlannedRead) -> bool:
    """Whether the source's own hash shows that the store has these bytes."""
    known, content_hash = read.known, read.candidate.content_hash
    return known is not None and known.quarantine_reason is None and known.content_hash == content_hash


def _body_unread(candidate: Candidate) -> ReadBody:
    return ReadBody(state=candidate.state, content_hash=candidate.content_hash or NO_HASH)


def _describe_read(read: PlannedRead, body: ReadBody, vanished: Mapping[MoveKey, str]) -> dict[str, object]:
    candidate, known = read.candidate, read.known
    row: dict[str, object] = {
        "doc_id": candidate.doc_id,
        "source": candidate.source,
        "uri": candidate.uri,
        "source_version": body.state.version,
        "content_hash": body.content_hash,
        "size_bytes": body.state.size_bytes,
        "mtime_ns": body.state.mtime_ns,
        "ctime_ns": body.state.ctime_ns,
        "object_id": body.state.object_id,
    }
    if body.is_gone:
        return row | {"status": GONE}
    if body.failure is not None:
        again = known is not None and (known.quarantine_reason, known.content_hash) == (body.failure, body.content_hash)
        return row | {"status": STILL_QUARANTINED if again else QUARANTINED, "quarantine_reason": body.failure}
    if known is not None and known.content_hash == body.content_hash and known.quarantine_reason is None:
        return row | {"status": SAME}
    moved_from = vanished.get(key_of_move(candidate.source, body.content_hash, candidate.uri))
    if read.is_new and moved_from is not None:
        return row | {"status": MOVED, "moved_from": moved_from}
    return row | {"text_format": body.text_format, "text": body.text, "status": NEW if read.is_new else CHANGED}


def prepare_documents(featurizer: Featurizer, read: pa.Table, counts: EncodeCounts | None = None) -> pa.Table:
    """Featurizer.prepare over a table of READ_SCHEMA; a document that fails here changes its status."""
    prepared = featurizer.prepare(read, counts)
    failed = pc.and_(pc.is_valid(prepared.column("quarantine_reason")), pc.is_valid(prepared.column("text")))
    status = pc.if_else(failed, QUARANTINED, prepared.column("status"))
    return prepared.set_column(prepared.column_names.index("status"), "status", status)


def encode_documents(
    featurizer: Featurizer,
    prepared: pa.Table,
    *,
    find_known: FindKnown,
    memory: MutableMapping[bytes, LeafVectors],
    run_id: str,
) -> StageOutput:
    """Featurizer.encode, with the segments that the store or this chunk already has left out.

    Args:
        featurizer: the one featurizer.
        prepared: a table from prepare_documents.
        find_known: looks segments up in the store.
        memory: leaves that this chunk has encoded and the store does not hold yet; grows by this call.
        run_id: the run that writes the rows.
    """
    started = time.perf_counter()
    all_spans = list(spans_from_table(prepared))
    unknown = [spans for spans in all_spans if any(f not in memory for f in spans.fingerprints())]
    known = {**find_known(unknown), **memory} if unknown else dict(memory)
    look_up = EncodeCounts()
    look_up.clock("look up", started)
    batch = featurizer.encode(prepared, known, run_id=run_id)
    memory.update(batch.encoded)
    batch.counts.add(look_up)
    return _split(batch, prepared)


def _split(batch: EncodedBatch, prepared: pa.Table) -> StageOutput:
    done = pc.is_in(prepared.column("status"), pa.array([NEW, CHANGED]))
    return StageOutput(
        features=batch.features,
        documents=batch.documents.filter(done),
        outcomes=_without_text(prepared.select(READ_SCHEMA.names)),
        counts=batch.counts,
    )


def has_work(read: pa.Table) -> bool:
    """Whether any document of a table of READ_SCHEMA has to be cut and encoded."""
    return bool(read.column("text").null_count < read.num_rows)


def pass_through(read: pa.Table, *, dim: int) -> StageOutput:
    """The output for a table of READ_SCHEMA in which nothing has to be cut or encoded."""
    return StageOutput(
        features=features_schema(dim).empty_table(),
        documents=DOCUMENTS_SCHEMA.empty_table(),
        outcomes=read,
        counts=EncodeCounts(),
    )


def _without_text(rows: pa.Table) -> pa.Table:
    text = pa.nulls(rows.num_rows, pa.large_string())
    return rows.set_column(rows.column_names.index("text"), "text", text).cast(READ_SCHEMA)


def merge_outputs(outputs: Sequence[StageOutput], *, dim: int) -> StageOutput:
    """The outputs of several calls as one."""
    counts = EncodeCounts()
    for output in outputs:
        counts.add(output.counts)
    return StageOutput(
        features=pa.concat_tables([features_schema(dim).empty_table(), *(o.features for o in outputs)]),
        documents=pa.concat_tables([DOCUMENTS_SCHEMA.empty_table(), *(o.documents for o in outputs)]),
        outcomes=pa.concat_tables([READ_SCHEMA.empty_table(), *(o.outcomes for o in outputs)]),
        counts=counts,
    )


def output_to_row(output: StageOutput) -> pa.Table:
    """One row that carries ``output`` between processes: Ray Data has one output a stage, this has three tables."""
    tables = (output.features, output.documents, output.outcomes)
    blobs = [_to_blob(table) for table in tables]
    counts = json.dumps(asdict(output.counts))
    return pa.table(
        {
            "features": blobs[0],
            "documents": blobs[1],
            "outcomes": blobs[2],
            "counts": [counts],
        }
    )


def outputs_from_rows(rows: pa.Table) -> list[StageOutput]:
    """The inverse of output_to_row, for any number of rows."""
    outputs = []
    for row in range(rows.num_rows):
        features, documents, outcomes = (
            pa.ipc.open_stream(rows.column(name)[row].as_buffer()).read_all()
            for name in ("features", "documents", "outcomes")
        )
        counts = EncodeCounts(**json.loads(rows.column("counts")[row].as_py()))
        outputs.append(StageOutput(features=features, documents=documents, outcomes=outcomes, counts=counts))
    return outputs


def _to_blob(table: pa.Table) -> pa.Array:
    """One value that holds ``table`` as an Arrow stream, without a copy of it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.array([0, stream.size], pa.int64()).buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
