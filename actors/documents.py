"""Rows of the table ``documents``, and what feature rows repeat of a document."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lodestream.actors.features import DocumentName
from lodestream.actors.prepared import PreparedSpans
from lodestream.schema import DOCUMENTS_SCHEMA


def build_document_rows(
    prepared: pa.Table, all_spans: Sequence[PreparedSpans], *, feature_version: str, now_us: int, run_id: str
) -> pa.Table:
    """A row of schema.DOCUMENTS_SCHEMA for each document of a prepared table.

    Args:
        prepared: a table from ``Featurizer.prepare``.
        all_spans: the spans of its documents.
        feature_version: what the features are of.
        now_us: microseconds since 1970, UTC.
        run_id: the run that writes the rows.
    """
    num_rows = prepared.num_rows
    columns = {name: prepared.column(name) for name in ("doc_id", "source", "uri", "content_hash")}
    columns |= {name: prepared.column(name) for name in ("source_version", "title", "num_tokens")}
    columns["text"] = pc.fill_null(prepared.column("text"), "")
    columns |= {
        "feature_version": pa.array([feature_version] * num_rows, pa.string()),
        "num_segments": pa.array([s.num_segments for s in all_spans], pa.int32()),
        "num_topics": pa.array([len(np.unique(s.paragraph_topics)) for s in all_spans], pa.int32()),
        "num_paragraphs": pa.array([len(s.paragraph_kinds) for s in all_spans], pa.int32()),
        "num_sentences": pa.array([_count_sentences(s) for s in all_spans], pa.int32()),
        "quarantine_reason": prepared.column("quarantine_reason"),
        "updated_at": pa.array([now_us] * num_rows, DOCUMENTS_SCHEMA.field("updated_at").type),
        "run_id": pa.array([run_id] * num_rows, pa.string()),
    }
    arrays = [columns[f.name].cast(f.type) for f in DOCUMENTS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=DOCUMENTS_SCHEMA)


def _count_sentences(spans: PreparedSpans) -> int:
    sizes = np.diff(spans.paragraph_leaves, axis=1)[:, 0]
    return int(sizes[spans.paragraph_fine].sum())


def name_documents(prepared: pa.Table) -> list[DocumentName]:
    """What the feature rows of each document of a prepared table repeat."""
    return [
        DocumentName(doc_id=doc_id, source=source, source_version=version, num_chars=num_chars or 0)
        for doc_id, source, version, num_chars in zip(
            prepared.column("doc_id").to_pylist(),
            prepared.column("source").to_pylist(),
            prepared.column("source_version").to_pylist(),
            pc.utf8_length(prepared.column("text")).to_pylist(),
            strict=True,
        )
    ]
