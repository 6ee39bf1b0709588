"""Bytes a feature row takes on the disk, column by column, and what look-ups cost with and without compressed columns.

Takes the rows of a published store, writes them as a run would (once without the compressed columns, for comparison)
and measures the files. The vectors count as ``4 x dim`` raw bytes. Text is in the table ``documents``, reported apart.

    python tests/bench/bench_rows.py [STORE]      # without STORE: the demo's corpus is computed first (some minutes)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from harness import interleave, record, start

from lodestream.schema import KEY_BYTES
from lodestream.storage import dataset as dataset_module
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table

ROOT = Path(__file__).resolve().parents[2]
INDEXED = ("key", "doc_id", "fingerprint")
COPIES = 10
ROUNDS = 400
NO_IDS = pa.array([], pa.string())


def build_demo_store(folder: Path) -> Path:
    """The demo's corpus, computed with the default settings."""
    subprocess.run([sys.executable, ROOT / "examples" / "demo_corpus.py", folder / "corpus"], check=True)
    for arguments in (["init", "corpus"], ["run"]):
        subprocess.run([sys.executable, "-m", "lodestream", *arguments], cwd=folder, check=True)
    return folder / ".lodestream"


def write_table(path: Path, rows: pa.Table, *, compressed: bool) -> Table:
    """The rows as a table of a store; without the compressed columns if asked."""
    keep = dataset_module.compress_fields
    if not compressed:
        dataset_module.compress_fields = lambda schema: schema
    try:
        return Table.create(path, rows.schema).replace_documents(NO_IDS, rows)
    finally:
        dataset_module.compress_fields = keep


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under ``folder``."""
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def measure_sizes(work: Path, features: pa.Table, dim: int) -> None:
    """Records the bytes a row of the whole table, of each column and of each index."""
    raw_bytes = features.num_rows * dim * 4
    config = {"num_rows": features.num_rows, "dim": dim}
    for provider, compressed in (("plain columns", False), ("lodestream", True)):
        path = work / f"all-{compressed}.lance"
        table = write_table(path, features, compressed=compressed)
        size = folder_bytes(path / "data")
        record("rows", provider, "table", "bytes/row", [size / features.num_rows], config=config)
        record("rows", provider, "table", "% of fp32", [100 * size / raw_bytes], config=config)
        for name in features.column_names:
            column = work / f"{name}-{compressed}.lance"
            write_table(column, features.select([name]), compressed=compressed)
            share = folder_bytes(column / "data") / features.num_rows
            record("rows", provider, "column", "bytes/row", [share], x=name, config=config)
        if not compressed:
            continue
        total = 0
        for name in INDEXED:
            table = table.tidy([name])
            grown = folder_bytes(path / "_indices") - total
            total += grown
            record("rows", provider, "index", "bytes/row", [grown / features.num_rows], x=name, config=config)
        record("rows", provider, "indexes", "% of fp32", [100 * total / raw_bytes], config=config)


def measure_text(work: Path, documents: pa.Table, num_rows: int) -> None:
    """Records what the stored text takes."""
    path = work / "documents.lance"
    write_table(path, documents, compressed=True)
    text_bytes = pc.sum(pc.binary_length(documents["text"])).as_py()
    size = folder_bytes(path / "data")
    config = {"num_documents": documents.num_rows, "text_bytes": text_bytes}
    record("rows", "lodestream", "documents", "% of text", [100 * size / text_bytes], config=config)
    record("rows", "lodestream", "documents", "bytes/feature row", [size / num_rows], config=config)


def multiply(features: pa.Table, copies: int) -> pa.Table:
    """The rows several times over, as rows of other documents: keys, names and fingerprints differ."""
    rng = np.random.default_rng(0)
    parts = []
    for copy in range(copies):
        keys = [rng.bytes(KEY_BYTES) for _ in range(features.num_rows)]
        salt = np.frombuffer(rng.bytes(16), dtype=np.uint8)
        prints = np.frombuffer(b"".join(features["fingerprint"].to_pylist()), dtype=np.uint8).reshape(-1, 16) ^ salt
        changed: dict[str, Any] = {
            "key": pa.array(keys, pa.binary(KEY_BYTES)),
            "doc_id": pc.binary_join_element_wise(features["doc_id"], str(copy), "/"),
            "fingerprint": pa.array([row.tobytes() for row in prints], pa.binary(16)),
        }
        columns = [changed.get(name, features[name]) for name in features.column_names]
        parts.append(pa.table(columns, schema=features.schema))
    return pa.concat_tables(parts)


def measure_lookups(work: Path, features: pa.Table) -> None:
    """Records look-ups of one key, of a hundred, and of one document, all columns each, warm."""
    rows = multiply(features, COPIES)
    tables = {
        name: write_table(work / f"many-{compressed}.lance", rows, compressed=compressed).tidy(INDEXED)
        for name, compressed in (("plain columns", False), ("lodestream", True))
    }
    keys, doc_ids = rows["key"].to_pylist(), rows["doc_id"].unique().to_pylist()
    rng = np.random.default_rng(1)

    def look_up(table: Table, column: str, values: list[Any], count: int) -> float:
        chosen = [values[at] for at in rng.integers(0, len(values), count)]
        where = pc.field(column).isin(pa.array(chosen, rows.schema.field(column).type))
        start_s = time.perf_counter()
        found = table.read(rows.column_names, where=where).num_rows
        if found < len(set(chosen)):
            raise SystemExit(f"{len(set(chosen)) - found} of {count} rows were not found")
        return 1e3 * (time.perf_counter() - start_s)

    for metric, *asked in (
        ("look up 1 key", "key", keys, 1),
        ("look up 100 keys", "key", keys, 100),
        ("look up 1 document", "doc_id", doc_ids, 1),
    ):
        measures = {name: partial(look_up, table, *asked) for name, table in tables.items()}
        interleave(10, measures)
        for name, times_ms in interleave(ROUNDS, measures).items():
            config = {"num_rows": rows.num_rows}
            record("rows", name, metric, "ms", times_ms, config=config)
            record("rows", name, f"{metric}, p99", "ms", [float(np.percentile(times_ms, 99))], config=config)


def main() -> None:
    """Measures the rows of a store, in a folder of its own that is removed."""
    work = Path(tempfile.mkdtemp(prefix="lodestream-rows-"))
    try:
        store = Path(sys.argv[1]) if len(sys.argv) > 1 else build_demo_store(work)
        snapshot = FeatureStore.open(str(store)).open_snapshot()
        features = pa.Table.from_batches(snapshot.scan_features(snapshot._features.schema.names))
        documents = snapshot._documents.read(snapshot._documents.schema.names)
        start("rows")
        measure_sizes(work, features, snapshot.dim)
        measure_text(work, documents, features.num_rows)
        measure_lookups(work, features)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
