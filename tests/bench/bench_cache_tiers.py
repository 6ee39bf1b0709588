"""The cache's tiers beside each other: how long one document's rows take, what they take of the raw vectors' bytes, and
what four bits lose. The features are those of a corpus under the default model.

    PYTHONPATH=. python tests/bench/bench_cache_tiers.py [DOCUMENTS]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from corpora import read_corpus
from harness import interleave, measure_time, record, start

from lodestream.actors.featurizer import Featurizer
from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.cached_rows import CachedRows
from lodestream.pipeline.serve.stored_rows import read_documents
from lodestream.schema import GRANULARITIES
from lodestream.storage.cache.compact_rows import PageCodec
from lodestream.storage.cache.layered import CacheOptions
from lodestream.storage.codec import decode_rows
from lodestream.storage.codec_int4 import pack_rows, unpack_rows
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.store_rows import begin, make_states

NAME = "cache_tiers"
ROUNDS = 200
BATCH = 32


def build_store(folder: Path, num_documents: int) -> tuple[str, Snapshot]:
    """A store with the features of so many documents of the corpus."""
    corpus, texts = read_corpus()
    featurizer = Featurizer()
    chosen = list(texts.items())[:: max(1, len(texts) // num_documents)][:num_documents]
    store = FeatureStore.open_or_create(folder, dim=featurizer.model.dim)
    transaction = begin(store, run_id="bench")
    for first in range(0, len(chosen), BATCH):
        part = chosen[first : first + BATCH]
        documents = pa.table(
            {
                "doc_id": [name for name, _ in part],
                "source": ["files"] * len(part),
                "uri": [f"file:///{name}" for name, _ in part],
                "content_hash": pa.array([bytes(32)] * len(part), pa.binary(32)),
                "source_version": ["2026-11-24T12:00:00.000000Z"] * len(part),
                "text": pa.array([text for _, text in part], pa.large_string()),
                "text_format": ["rst"] * len(part),
            }
        )
        encoded = featurizer.encode(featurizer.prepare(documents), {}, run_id="0123456789abcdef")
        transaction.write_chunk(
            features=encoded.features,
            documents=encoded.documents,
            deleted_doc_ids=[],
            source_state=make_states({name: [text] for name, text in part}),
        )
    transaction.publish(checkpoint={}, run={})
    return f"{len(chosen)} documents of {corpus}", store.open_snapshot()


def open_rows(
    snapshot: Snapshot, folder: Path, *, codec: PageCodec, memory_bytes: int
) -> tuple[CacheKeeper, CachedRows]:
    options = CacheOptions(
        memory_bytes=dict.fromkeys(GRANULARITIES, memory_bytes),
        folder=folder,
        disk_bytes=1 << 30,
        codec=codec,
        max_age_s=1e6,
    )
    keeper = CacheKeeper(options)
    rows = CachedRows(keeper)
    rows.prepare(snapshot, before=None)
    return keeper, rows


def fill(snapshot: Snapshot, folder: Path, codec: PageCodec, doc_ids: Sequence[str]) -> int:
    """Read all documents through an empty cache; returns the bytes of its folder."""
    keeper, rows = open_rows(snapshot, folder, codec=codec, memory_bytes=0)
    for first in range(0, len(doc_ids), BATCH):
        rows.get(snapshot, doc_ids[first : first + BATCH], GRANULARITIES)
    keeper.close()
    return sum(path.stat().st_size for path in folder.iterdir())


def measure_four_bits(snapshot: Snapshot, config: dict[str, object]) -> None:
    """Cosine of the copies with the stored vectors, and the share of the ten nearest paragraphs that stay so."""
    table = pa.Table.from_batches(snapshot.scan_features(["codes", "scale"], granularity="paragraph")).combine_chunks()
    codes = table["codes"].chunk(0).flatten().to_numpy().reshape(table.num_rows, -1)
    stored = decode_rows(codes, table["scale"].to_numpy())
    copied = unpack_rows(*pack_rows(stored), stored.shape[1])
    for vectors in (stored, copied):
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    cosines = (stored * copied).sum(axis=1)
    asked = stored[:: max(1, len(stored) // 500)]
    right, found = (np.argpartition(-(asked @ rows.T), 10, axis=1)[:, :10] for rows in (stored, copied))
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(right.tolist(), found.tolist(), strict=True)]
    record(NAME, "int4", "cosine to the stored vectors, mean", "1", [float(cosines.mean())], config=config)
    record(NAME, "int4", "cosine to the stored vectors, least", "1", [float(cosines.min())], config=config)
    record(NAME, "int4", "recall@10 of paragraphs", "1", [float(np.mean(kept))], config=config)


def main() -> None:
    """Records shares, times and errors."""
    start(NAME)
    folder = Path(tempfile.mkdtemp(prefix="bench-cache-"))
    try:
        corpus, snapshot = build_store(folder / "store", int(sys.argv[1]) if len(sys.argv) > 1 else 60)
        num_rows = sum(snapshot.count_features().values())
        doc_ids = snapshot.document_states()["doc_id"].to_pylist()
        config: dict[str, object] = {"corpus": corpus, "rows": num_rows, "dim": snapshot.dim}
        raw_bytes = num_rows * snapshot.dim * 4
        for codec in ("int8", "int4"):
            taken = fill(snapshot, folder / codec, codec, doc_ids)
            record(NAME, f"disk, {codec}", "share of the raw float32 bytes", "1", [taken / raw_bytes], config=config)
        measure_four_bits(snapshot, config)
        measure_times(snapshot, folder, doc_ids, config)
    finally:
        shutil.rmtree(folder)


def measure_times(snapshot: Snapshot, folder: Path, doc_ids: Sequence[str], config: dict[str, object]) -> None:
    """One document's rows of all granularities, from each tier in turn."""
    keepers = []
    readers: dict[str, Callable[[str], object]] = {
        "snapshot": lambda doc_id: read_documents(snapshot, [doc_id], GRANULARITIES)
    }
    for name, codec, memory_bytes in (
        ("memory", "int8", 1 << 30),
        ("disk, int8", "int8", 0),
        ("disk, int4", "int4", 0),
    ):
        keeper, rows = open_rows(snapshot, folder / codec, codec=codec, memory_bytes=memory_bytes)
        keepers.append(keeper)
        readers[name] = lambda doc_id, rows=rows: rows.get(snapshot, [doc_id], GRANULARITIES)
        for doc_id in doc_ids:
            readers[name](doc_id)
    order = iter(np.random.default_rng(0).choice(doc_ids, size=ROUNDS * len(readers)).tolist())

    def take_time(read: Callable[[str], object]) -> float:
        doc_id = next(order)
        return measure_time(lambda: read(doc_id)).seconds * 1000

    providers = {name: (lambda read=read: take_time(read)) for name, read in readers.items()}
    for name, values in interleave(ROUNDS, providers).items():
        record(NAME, name, "one document's rows", "ms", values, config=config)
    for keeper in keepers:
        keeper.close()


if __name__ == "__main__":
    main()
