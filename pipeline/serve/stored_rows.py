"""Rows straight from the store: one look-up of the documents, one of their features."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lodestream.pipeline.serve.parts import StoredDocument
from lodestream.pipeline.states import find_rows
from lodestream.schema import GRANULARITIES, Granularity, features_schema
from lodestream.storage.store import Snapshot

_RANKS = pa.array(GRANULARITIES)


def read_documents(
    snapshot: Snapshot, doc_ids: Sequence[str], granularities: Collection[Granularity]
) -> dict[str, StoredDocument]:
    """What the store has of some documents.

    Args:
        doc_ids: different ones; unknown ones are no error.
        granularities: which rows.
    """
    columns = ("doc_id", "source", "source_version", "quarantine_reason")
    states = find_rows(snapshot, "documents", doc_ids, columns).to_pylist()
    if not states:
        return {}
    schema = features_schema(snapshot.dim)
    batches = snapshot.scan_features(schema.names, doc_ids=[state["doc_id"] for state in states])
    rows = pa.Table.from_batches(batches, schema=schema)
    rows = rows.filter(pc.is_in(rows.column("granularity"), pa.array(list(granularities))))
    groups = _group_by_document(rows)
    return {
        state["doc_id"]: StoredDocument(
            doc_id=state["doc_id"],
            source=state["source"],
            source_version=state["source_version"],
            quarantine_reason=state["quarantine_reason"],
            batches=groups[state["doc_id"]].to_batches() if state["doc_id"] in groups else (),
            schema=schema,
        )
        for state in states
    }


def _group_by_document(rows: pa.Table) -> dict[str, pa.Table]:
    """The rows of each document, by granularity (sentences first) and ordinal."""
    if not rows.num_rows:
        return {}
    names = rows.column("doc_id").combine_chunks().dictionary_encode()
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    owners = names.indices.to_numpy()
    ranks = pc.index_in(rows.column("granularity"), _RANKS).to_numpy()
    order = np.lexsort((rows.column("ordinal").to_numpy(), ranks, owners))
    ordered = rows.take(pa.array(order))
    bounds = np.searchsorted(owners[order], np.arange(len(names.dictionary) + 1))
    return {
        name: ordered.slice(bounds[i], bounds[i + 1] - bounds[i]) for i, name in enumerate(names.dictionary.to_pylist())
    }
