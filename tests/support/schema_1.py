"""A store as lodestream wrote it under schema version 1: two tables, no ``source_state``.

The columns are written out here and never follow lodestream.schema: this is what old stores look like.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from lodestream.storage.registers.local import LocalRegister

_TIME = pa.timestamp("us", tz="UTC")
_NULLABLE = {"quarantine_reason"}
_DOCUMENTS = {
    "doc_id": pa.string(),
    "source": pa.string(),
    "uri": pa.string(),
    "content_hash": pa.binary(32),
    "source_version": pa.string(),
    "feature_version": pa.string(),
    "title": pa.string(),
    "text": pa.large_string(),
    "num_tokens": pa.int64(),
    "num_segments": pa.int32(),
    "num_topics": pa.int32(),
    "num_paragraphs": pa.int32(),
    "num_sentences": pa.int32(),
    "quarantine_reason": pa.string(),
    "updated_at": _TIME,
    "run_id": pa.string(),
}


def _features(dim: int) -> dict[str, pa.DataType]:
    return {
        "key": pa.binary(16),
        "doc_id": pa.string(),
        "granularity": pa.string(),
        "ordinal": pa.int32(),
        "parent": pa.int32(),
        "kind": pa.string(),
        "char_start": pa.int32(),
        "char_end": pa.int32(),
        "token_count": pa.int32(),
        "codes": pa.list_(pa.field("item", pa.int8(), nullable=False), dim),
        "scale": pa.float16(),
        "norm": pa.float16(),
        "density": pa.float16(),
        "fingerprint": pa.binary(16),
        "source_version": pa.string(),
        "computed_at": _TIME,
        "run_id": pa.string(),
    }


def write_store(root: Path, *, features: pa.Table, documents: pa.Table, staged: dict[str, Any] | None = None) -> None:
    """Write a store of schema 1 that has published these rows as its snapshots 1 (nothing) and 2.

    Args:
        features, documents: rows with the columns of schema 1; others are left out.
        staged: the pointer's ``staged``, as JSON.
    """
    dim = features.schema.field("codes").type.list_size
    versions = {
        "features": _write_table(root / "features.lance", features, _features(dim)),
        "documents": _write_table(root / "documents.lance", documents, _DOCUMENTS),
    }
    described: dict[str, Any] = {"feature_version": "f1", "recipe": {"model": "toy"}, "run_id": "old-run"}
    history = [
        {"sequence": 1, "tables": dict.fromkeys(versions, 1), "published_at": "2026-01-01T00:00:00+00:00", **described},
        {"sequence": 2, "tables": versions, "published_at": "2026-01-02T00:00:00+00:00", **described},
    ]
    record = {
        "format": 1,
        "sequence": 2,
        "epoch": 5,
        "nonce": "n2",
        "previous": "n1",
        "schema_version": 1,
        "dim": dim,
        "tables": versions,
        "staged": staged,
        "checkpoint": {},
        "published_at": history[-1]["published_at"],
        "checked_at": history[-1]["published_at"],
        "run": {},
        "history": history,
        **described,
    }
    LocalRegister(root / "pointer").cas(None, record)


def _write_table(path: Path, rows: pa.Table, columns: dict[str, pa.DataType]) -> int:
    schema = pa.schema([pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in columns.items()])
    lance.write_dataset(schema.empty_table(), str(path), data_storage_version="2.1", enable_stable_row_ids=True)
    kept = pa.table({name: rows[name].cast(schema.field(name).type) for name in columns}).cast(schema)
    dataset = lance.write_dataset(kept, str(path), mode="append", data_storage_version="2.1")
    for number, version in ((1, 1), (2, dataset.version)):
        dataset.tags.create(f"snapshot-{number}", version)
    return int(dataset.version)
