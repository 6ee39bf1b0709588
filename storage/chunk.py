"""A chunk: some documents with all their rows. What it may hold, its checksums, and which stored rows it replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.schema import TABLES
from lodestream.storage.checksum import FeatureSums, seal_documents, sum_features
from lodestream.storage.table import Table

_LOOKUP_IDS: Final = 1000


def check_chunk(rows: Mapping[str, pa.Table], deleted_doc_ids: Sequence[str], keep_features_of: Sequence[str]) -> None:
    """Refuse a chunk that contradicts itself with a ValueError."""
    for name, kind in TABLES.items():
        if pc.count_distinct(rows[name][kind.key]).as_py() != rows[name].num_rows:
            raise ValueError(f"a {kind.key} comes twice in one chunk of {name}")
    doc_ids = set(rows["documents"]["doc_id"].to_pylist())
    if (doc_ids | set(rows["source_state"]["doc_id"].to_pylist())) & set(deleted_doc_ids):
        raise ValueError("a document is both written and deleted in one chunk")
    kept = set(keep_features_of)
    if kept - doc_ids:
        raise ValueError("keep_features_of names documents that are not in the chunk")
    if set(pc.unique(rows["features"]["doc_id"]).to_pylist()) - (doc_ids - kept):
        raise ValueError("features has rows of documents that are not replaced in this chunk")


def seal_chunk(documents: Table, rows: Mapping[str, pa.Table], keep_features_of: Sequence[str]) -> pa.Table:
    """Return a chunk's rows of ``documents`` with checksums. Features that stay keep the one that ``documents`` has."""
    kept: dict[str, bytes | None] = {doc_id: FeatureSums().of(doc_id) for doc_id in keep_features_of}
    for start in range(0, len(keep_features_of), _LOOKUP_IDS):
        chosen = pa.array(keep_features_of[start : start + _LOOKUP_IDS], pa.string())
        where = pc.field("doc_id").isin(chosen)
        stored = documents.read(["doc_id", "features_checksum"], where=where)
        kept |= dict(zip(stored["doc_id"].to_pylist(), stored["features_checksum"].to_pylist(), strict=True))
    return seal_documents(rows["documents"], sum_features(rows["features"]), kept)


def select_removed(
    tables: Mapping[str, Table],
    rows: Mapping[str, pa.Table],
    deleted_doc_ids: Sequence[str],
    keep_features_of: Sequence[str],
) -> dict[str, pa.Array]:
    """Return for each table the documents whose rows there are replaced or vanish."""
    deleted = pa.array(deleted_doc_ids, pa.string())
    stored = {
        name: _select_stored(tables[name], pa.concat_arrays([*rows[name]["doc_id"].chunks, deleted]))
        for name in ("documents", "source_state")
    }
    kept = pa.array(keep_features_of, pa.string())
    documents = stored["documents"]
    replaced = documents.filter(pc.invert(pc.is_in(documents, value_set=kept)))
    # A deletion takes features along that no document owns (see lodestream verify).
    return stored | {"features": pa.concat_arrays([replaced, deleted])}


def _select_stored(table: Table, doc_ids: pa.Array) -> pa.Array:
    """Return those of ``doc_ids`` that have a row: for the others there is nothing to replace, appending is enough."""
    found = [pa.array([], pa.string())]
    if table.count():
        for start in range(0, len(doc_ids), _LOOKUP_IDS):
            where = pc.field("doc_id").isin(doc_ids.slice(start, _LOOKUP_IDS))
            found += table.read(["doc_id"], where=where)["doc_id"].chunks
    return pa.concat_arrays(found)
