"""Search of a snapshot's vectors: the index against a brute force in numpy and Lance's own on float16, the same rows.

Rows are random unit vectors about a thousand centres, stored by the store's codec. Each search is one query on one
thread; the index is asked through its own interface, so the numbers hold all that it does but for titles and texts. An
update changes one document in a hundred; a rebuild reads all of them again.

    PYTHONPATH=. python tests/bench/bench_search_index.py [ROWS ...]
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import interleave, measure_time, record

from lodestream.schema import DOCUMENTS_SCHEMA, SOURCE_STATE_SCHEMA, features_schema, row_key
from lodestream.storage.catalog import Catalog
from lodestream.storage.codec import encode_rows
from lodestream.storage.reader import Snapshot
from lodestream.storage.search.index import Filters, VectorIndex
from lodestream.storage.search.scores import Query, find_best
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import begin, make_documents, make_states

NAME = "search_index"
DIM = 384
ROWS_A_DOCUMENT = 10
LIMIT = 10
QUERIES = 12
MANY_ROWS = 200_000
CHUNK_DOCUMENTS = 5000


def make_vectors(num_rows: int, seed: int) -> np.ndarray:
    """float32 [N, D] about a thousand centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float32)
    return centres[rng.integers(1000, size=num_rows)] + rng.normal(size=(num_rows, DIM)).astype(np.float32)


def make_features(doc_ids: list[str], seed: int) -> pa.Table:
    """ROWS_A_DOCUMENT paragraphs of each document."""
    num_rows = len(doc_ids) * ROWS_A_DOCUMENT
    codes, scales, norms = encode_rows(make_vectors(num_rows, seed))
    schema = features_schema(DIM)
    names = [doc_id for doc_id in doc_ids for _ in range(ROWS_A_DOCUMENT)]
    ordinals = np.tile(np.arange(ROWS_A_DOCUMENT, dtype=np.int32), len(doc_ids))
    keys = [
        row_key("files", name, "paragraph", ordinal) for name, ordinal in zip(names, ordinals.tolist(), strict=True)
    ]
    number = pa.array(np.zeros(num_rows, np.int32))
    columns: dict[str, Any] = {
        "key": pa.array(keys, pa.binary(16)),
        "doc_id": names,
        "granularity": ["paragraph"] * num_rows,
        "ordinal": ordinals,
        "kind": ["text"] * num_rows,
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=schema.field("codes").type),
        "scale": scales,
        "norm": norms,
        "density": np.linspace(0, 1, num_rows).astype(np.float16),
        "fingerprint": pa.array(keys, pa.binary(16)),
        "source_version": ["v1"] * num_rows,
        "computed_at": pa.array(np.zeros(num_rows, np.int64), schema.field("computed_at").type),
        "run_id": ["bench"] * num_rows,
    }
    return (
        pa.table(
            {
                item.name: columns[item.name]
                if isinstance(columns.get(item.name, number), pa.Array)
                else pa.array(columns[item.name], item.type)
                for item in schema
                if item.name in columns
            }
            | {item.name: number.cast(item.type) for item in schema if item.name not in columns}
        )
        .select(schema.names)
        .cast(schema)
    )


def write(store: FeatureStore, doc_ids: list[str], seed: int) -> Snapshot:
    """Publish documents."""
    transaction = begin(store, run_id=f"run {seed}")
    for start in range(0, len(doc_ids), CHUNK_DOCUMENTS):
        part = doc_ids[start : start + CHUNK_DOCUMENTS]
        named = {doc_id: ["text"] for doc_id in part}
        transaction.write_chunk(
            features=make_features(part, seed + start),
            documents=make_documents(named, run_id=f"run {seed}").cast(DOCUMENTS_SCHEMA),
            deleted_doc_ids=[],
            source_state=make_states(named).cast(SOURCE_STATE_SCHEMA),
        )
    transaction.publish(checkpoint={}, run={})
    return store.open_snapshot()


def take_time(work: Callable[[], object]) -> float:
    """Milliseconds."""
    return measure_time(work).seconds * 1000


def open_lance(codes: np.ndarray, folder: Path) -> Callable[[np.ndarray], object]:
    """Lance's flat search over float16 vectors."""
    import lance

    kind = pa.list_(pa.float16(), DIM)
    vectors = codes.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), type=kind)
    dataset = lance.write_dataset(pa.table({"vector": column}), str(folder))
    return lambda query: dataset.to_table(
        nearest={"column": "vector", "q": query.astype(np.float16), "k": LIMIT, "metric": "cosine"},
        columns=["_distance"],
    )


def measure(num_rows: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-index-"))
    try:
        store = FeatureStore.open_or_create(folder / "store", dim=DIM)
        doc_ids = [f"folder {number % 100}/document {number}.md" for number in range(num_rows // ROWS_A_DOCUMENT)]
        snapshot = write(store, doc_ids, 0)
        catalog = Catalog.read(snapshot)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load_ms = take_time(lambda: VectorIndex.load(snapshot, catalog))
        peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
        index = VectorIndex.load(snapshot, catalog)
        config = {"dim": DIM, "limit": LIMIT}
        record(NAME, "index", "bytes a row", "bytes", [index.nbytes / num_rows], x=num_rows, config=config)
        record(NAME, "index", "peak memory of loading", "MiB", [peak_mib], x=num_rows, config=config)
        codes = np.concatenate([block.take_codes(slice(None)) for block in index._blocks["paragraph"]])
        rng = np.random.default_rng(5)
        queries = codes[rng.integers(num_rows, size=QUERIES)] + rng.normal(size=(QUERIES, DIM)).astype(np.float32) * 30
        query = iter(np.repeat(queries.astype(np.float32), 10, axis=0))
        ways: dict[str, Callable[[np.ndarray], object]] = {
            "index": lambda q: index.search(q, limit=LIMIT, filters=Filters()),
            "index, density >= .5": lambda q: index.search(q, limit=LIMIT, filters=Filters(min_density=0.5)),
            "index, one folder": lambda q: index.search(q, limit=LIMIT, filters=Filters(doc_prefix="folder 7/")),
            "numpy, all rows": lambda q: _scan(codes, q),
        }
        if num_rows <= MANY_ROWS:
            ways["Lance, float16, flat"] = open_lance(codes, folder / "float16.lance")
        providers = {name: (lambda way=way: take_time(lambda: way(next(query)))) for name, way in ways.items()}
        for way in ways.values():
            way(queries[0].astype(np.float32))
        for name, values in interleave(QUERIES if num_rows <= MANY_ROWS else QUERIES // 4, providers).items():
            record(NAME, name, "search", "ms", values, x=num_rows, config=config)
        changed = doc_ids[::100]
        after = write(store, changed, 10**6)
        update_ms = [take_time(lambda: index.advance(after, Catalog.read(after))) for _ in range(3)]
        reload_ms = [load_ms, *[take_time(lambda: VectorIndex.load(after, Catalog.read(after))) for _ in range(2)]]
        record(NAME, "index", "update of 1 %", "ms", update_ms, x=num_rows, config=config)
        record(NAME, "index", "rebuild", "ms", reload_ms, x=num_rows, config=config)
        record(NAME, "index", "catalog", "ms", [take_time(lambda: Catalog.read(after))], x=num_rows, config=config)
        updated = index.advance(after, Catalog.read(after))
        found = updated.search(queries[0].astype(np.float32), limit=LIMIT, filters=Filters())
        fresh = VectorIndex.load(after, Catalog.read(after)).search(
            queries[0].astype(np.float32), limit=LIMIT, filters=Filters()
        )
        assert found == fresh
    finally:
        shutil.rmtree(folder)


def _scan(codes: np.ndarray, query: np.ndarray) -> None:
    prepared = Query.of(query)
    floor = -np.inf
    for start in range(0, len(codes), 8192):
        _, scores = find_best(codes[start : start + 8192], prepared, LIMIT, floor=floor)
        floor = max(floor, np.sort(scores)[-LIMIT]) if len(scores) >= LIMIT else floor


def main() -> None:
    """Measures each size."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for num_rows in [int(text) for text in sys.argv[1:]] or [200_000]:
        measure(num_rows)


if __name__ == "__main__":
    main()
