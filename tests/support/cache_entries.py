"""Entries for the tests of the cache, one for each document's name and granularity."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.storage.cache.compact_rows import PageCodec
from lodestream.storage.cache.disk import DiskTier
from lodestream.storage.cache.entry import Entry, name_rows
from tests.support.store_rows import DIM, make_features


def make_entry(doc_id: str, *, num_rows: int = 3, granularity: str = "sentence", dim: int = DIM) -> Entry:
    """A document's rows; the vectors follow from its name."""
    table = make_features({doc_id: [f"{doc_id} {number}" for number in range(num_rows)]}, dim=dim)
    chosen = table.filter(pc.equal(table["granularity"], granularity)).combine_chunks()
    batches = chosen.to_batches()
    rows = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=chosen.schema)
    return Entry(rows=rows, source="files")


def make_key(doc_id: str, granularity: str = "sentence") -> bytes:
    return name_rows(doc_id.encode(), granularity)


def open_disk(
    folder: Path,
    *,
    budget_bytes: int = 1 << 20,
    max_age_s: float = 1e9,
    codec: PageCodec = "int8",
    now: list[float] | None = None,
) -> DiskTier:
    """A disk tier; ``now`` holds its clock's time."""
    moment = now if now is not None else [1e9]
    return DiskTier(
        folder, dim=DIM, codec=codec, budget_bytes=budget_bytes, max_age_s=max_age_s, clock=lambda: moment[0]
    )


def fill(tier: DiskTier, doc_ids: list[str]) -> None:
    """Put the entry of each document and write all of it."""
    for doc_id in doc_ids:
        tier.put("sentence", make_key(doc_id), make_entry(doc_id))
    tier.flush()


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
