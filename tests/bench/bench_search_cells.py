"""Approximate search beside exact search, at several sizes: time, recall of the ten nearest, what cells take to make.

Vectors are those of a store's paragraphs under the default model (``make demo`` makes one), and as many more as a size
needs: a row plus .8 or less of the difference of two other rows, so that they lie as dense along the same directions as
real ones. Queries are made the same way and are not in the index. Times are processor time of one thread; both ways are
asked in turn. ``--update`` publishes a thousand changed rows to a store of the given size. Without arguments the demo's
store is made, and every size is measured in a process of its own, for peak memory is that of a process.

    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONPATH=.
    python tests/bench/bench_search_cells.py [STORE ROWS [ROWS ...] [--update]]
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench_rows import build_demo_store
from bench_search_index import DIM, LIMIT, ROWS_A_DOCUMENT, write
from harness import interleave, record, start

from lodestream.storage.catalog import Catalog
from lodestream.storage.codec import encode_rows
from lodestream.storage.search.building import Builder
from lodestream.storage.search.index import Filters, Found, VectorIndex, _Names
from lodestream.storage.search.recall import tune
from lodestream.storage.store import FeatureStore

NAME = "search_cells"
RUNS = (["100000"], ["300000"], ["1000000"], ["1000000", "--update"])
QUERIES = 60
CHUNK = 50_000
CHANGED_DOCUMENTS = 100
MIN_RECALL = 0.95


def read_vectors(path: str) -> np.ndarray:
    """float32 [N, D]: the different paragraphs of a store, unit length."""
    batches = FeatureStore.open(path).open_snapshot().scan_features(("codes",), granularity="paragraph")
    codes = np.concatenate([batch.column("codes").flatten().to_numpy().reshape(-1, DIM) for batch in batches])
    vectors = np.unique(codes, axis=0).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vary(vectors: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
    """float32 [N, D] that lie as ``vectors`` do."""
    rng = np.random.default_rng(seed)
    one, two, three = (rng.integers(len(vectors), size=num_rows) for _ in range(3))
    return vectors[one] + rng.random((num_rows, 1), dtype=np.float32) * 0.8 * (vectors[two] - vectors[three])


def build(vectors: np.ndarray, num_rows: int) -> VectorIndex:
    """An index of so many paragraphs, ten a document."""
    doc_ids = pa.array([f"document {number}.md" for number in range(num_rows // ROWS_A_DOCUMENT)])
    numbers = np.arange(len(doc_ids), dtype=np.int32)
    builder = Builder({})
    for first in range(0, num_rows, CHUNK):
        count = min(CHUNK, num_rows - first)
        places = np.arange(first, first + count)
        codes = encode_rows(vary(vectors, count, first))[0]
        batch = pa.record_batch(
            {
                "doc_id": doc_ids.take(pa.array(places // ROWS_A_DOCUMENT)),
                "granularity": ["paragraph"] * count,
                "ordinal": pa.array(places % ROWS_A_DOCUMENT, pa.int32()),
                "kind": ["text"] * count,
                "char_start": pa.array(np.zeros(count, np.int32)),
                "char_end": pa.array(np.zeros(count, np.int32)),
                "density": pa.array((places % 100 / 100).astype(np.float16)),
                "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), DIM),
            }
        )
        builder.add(batch, doc_ids, numbers)
    names = _Names().extended(doc_ids)
    catalog = Catalog.__new__(Catalog)  # only an update asks it
    return VectorIndex(catalog, names, numbers, np.ones(len(doc_ids), np.bool_), builder.finish())


def take_time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of all threads in seconds, and what came of it."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def measure_search(vectors: np.ndarray, num_rows: int) -> None:
    index = build(vectors, num_rows)
    train_s, centroids = take_time(lambda: index.train("paragraph"))
    divide_s, divided = take_time(lambda: index.divide("paragraph", centroids))
    tune_s, recall = take_time(lambda: tune(divided, "paragraph", num_rows=48, queries=[], least=MIN_RECALL, seed=1))
    config = {"dim": DIM, "limit": LIMIT, "cells": len(centroids), "cells searched": recall.num_cells}

    def put(provider: str, metric: str, unit: str, values: list[float]) -> None:
        record(NAME, provider, metric, unit, values, x=num_rows, config=config)

    for metric, seconds in (("train", train_s), ("assign", divide_s), ("measure recall", tune_s)):
        put("cells", metric, "s of processor time", [seconds])
    put("cells", "recall as the index has it", "share", [recall.worst])
    put("cells", "memory of the index", "MiB", [divided.nbytes / 2**20])
    put("all", "peak memory of the process", "MiB", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
    for label, filters in (("", Filters()), (", density >= .5", Filters(min_density=0.5))):
        times, share = ask_both(divided, vary(vectors, QUERIES, 10**9), filters, recall.num_cells)
        for provider, values in times.items():
            put(provider, f"search{label}", "ms of processor time", values)
        put("cells", f"recall of held-out queries{label}", "share", [share])


def ask_both(
    index: VectorIndex, queries: np.ndarray, filters: Filters, num_cells: int
) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of either way, and the share of the exact answers that the cells gave."""
    waiting = iter(queries)
    query = np.zeros(DIM, np.float32)
    exact: list[Found] = []
    shares: list[float] = []

    def ask_exactly() -> float:
        nonlocal query, exact
        query = next(waiting)
        seconds, exact = take_time(lambda: index.search(query, limit=LIMIT, filters=filters))
        return seconds * 1000

    def ask_cells() -> float:
        seconds, (found, _) = take_time(
            lambda: index.search_cells(query, limit=LIMIT, filters=filters, num_cells=num_cells)
        )
        shares.append(len(set(found) & set(exact)) / LIMIT)
        return seconds * 1000

    times = interleave(len(queries), {"exact": ask_exactly, "cells": ask_cells})
    return times, float(np.mean(shares))


def measure_update(num_rows: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-cells-"))
    try:
        store = FeatureStore.open_or_create(folder / "store", dim=DIM)
        doc_ids = [f"document {number}.md" for number in range(num_rows // ROWS_A_DOCUMENT)]
        snapshot = write(store, doc_ids, 0)
        index = VectorIndex.load(snapshot, Catalog.read(snapshot))
        index = index.divide("paragraph", index.train("paragraph"))
        after = write(store, doc_ids[:: len(doc_ids) // CHANGED_DOCUMENTS][:CHANGED_DOCUMENTS], 10**6)
        catalog = Catalog.read(after)
        config = {"dim": DIM, "changed rows": CHANGED_DOCUMENTS * ROWS_A_DOCUMENT}
        providers: dict[str, Callable[[], float]] = {
            "update": lambda: take_time(lambda: index.advance(after, catalog))[0] * 1000,
            "rebuild": lambda: take_time(lambda: VectorIndex.load(after, catalog))[0] * 1000,
        }
        for provider, values in interleave(3, providers).items():
            record(NAME, provider, "follow a publish", "ms of processor time", values, x=num_rows, config=config)
    finally:
        shutil.rmtree(folder)


def measure_all() -> None:
    """All of RUNS, each in a process of its own with one thread."""
    start(NAME)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="bench-cells-") as work:
        store = build_demo_store(Path(work))
        for arguments in RUNS:
            subprocess.run([sys.executable, __file__, str(store), *arguments], env=environment, check=True)


def main() -> None:
    """Measures each size."""
    if not sys.argv[1:]:
        measure_all()
        return
    path, *rest = sys.argv[1:]
    vectors = read_vectors(path)
    sizes = [int(text) for text in rest if text != "--update"]
    for num_rows in sizes:
        if "--update" in rest:
            measure_update(num_rows)
        else:
            measure_search(vectors, num_rows)


if __name__ == "__main__":
    main()
