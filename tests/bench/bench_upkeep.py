"""A week of refreshes against a store of a million rows, with upkeep and without: look-ups, files and bytes.

Every refresh replaces ten documents of a hundred rows each and publishes, as a run does. With upkeep it ends as a run
ends (indexes, merging, cleaning by the defaults); without, the indexes stay as they were built and nothing is merged
or removed. Time is compressed: retention goes by the number of snapshots (12, an hour of refreshes), not by age. At the
end the look-ups of the store are timed in turn with those of a fresh store of the same rows.

    python tests/bench/bench_upkeep.py FOLDER [--refreshes 288] [--rows 1000000] [--max-seconds 240]

``FOLDER`` keeps the stores and the progress: the same command continues where ``--max-seconds`` ended it, and writes
the results once all refreshes are done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from harness import record, start

from lodestream.schema import DOCUMENTS_SCHEMA, KEY_BYTES, SOURCE_STATE_SCHEMA, features_schema, row_key
from lodestream.storage import transaction as transaction_module
from lodestream.storage.lease import Lease
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage, keep_up, measure_store
from lodestream.storage.snapshot import Retention
from lodestream.storage.store import FeatureStore, Snapshot
from lodestream.storage.table import Table

DIM = 384
ROWS_PER_DOCUMENT = 100
DOCUMENTS_PER_REFRESH = 10
DOCUMENTS_PER_CHUNK = 500
RETENTION = Retention(keep_snapshots=12)
MEASURED_EVERY = 12
LOOKUPS = 300
LOOKUPS_DURING = 60
WORDS = [f"{a}{b}" for a in ("lo", "de", "stre", "am", "kee", "per") for b in ("ra", "ti", "von", "quel", "s", "mu")]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@cache
def hold_lease(store: FeatureStore) -> Lease:
    """The store's lease, held until the benchmark ends."""
    lease = store.open_lease("benchmark")
    lease.acquire()
    return lease


@dataclass(slots=True)
class Progress:
    """What has been done to one store, and what was seen on the way."""

    num_refreshes: int = 0
    merged_at: list[int] = field(default_factory=list)
    refresh_s: list[float] = field(default_factory=list)
    upkeep_s: list[float] = field(default_factory=list)
    seen: list[dict[str, float]] = field(default_factory=list)


def name_document(number: int) -> str:
    """The doc_id of a document."""
    return f"docs/part{number % 97:02}/document-{number:06}.md"


def make_features(numbers: list[int], generation: int) -> pa.Table:
    """The rows of some documents: unit-like vectors, and columns that are filled as real ones are."""
    rng = np.random.default_rng((generation, numbers[0]))
    count = len(numbers) * ROWS_PER_DOCUMENT
    schema = features_schema(DIM)
    ordinals = np.tile(np.arange(ROWS_PER_DOCUMENT, dtype=np.int32), len(numbers))
    doc_ids = [name_document(number) for number in numbers for _ in range(ROWS_PER_DOCUMENT)]
    keys = [row_key("files", doc_id, "sentence", int(at)) for doc_id, at in zip(doc_ids, ordinals, strict=True)]
    columns: dict[str, Any] = {
        "key": pa.array(keys, pa.binary(KEY_BYTES)),
        "doc_id": doc_ids,
        "granularity": ["sentence"] * count,
        "ordinal": ordinals,
        "parent": ordinals // 4,
        "kind": ["text"] * count,
        "char_start": ordinals * 83,
        "char_end": ordinals * 83 + 80,
        "token_count": rng.integers(5, 40, count, dtype=np.int32),
        "codes": pa.FixedSizeListArray.from_arrays(
            pa.array(np.clip(rng.normal(0, 36, count * DIM), -127, 127).astype(np.int8)),
            type=schema.field("codes").type,
        ),
        "scale": pa.array(rng.uniform(0.001, 0.002, count).astype(np.float16)),
        "norm": pa.array(rng.uniform(1, 9, count).astype(np.float16)),
        "density": pa.array(np.repeat(rng.random(count // 4), 4).astype(np.float16)),
        "fingerprint": pa.array([os.urandom(16) for _ in range(count // 2) for _ in range(2)], pa.binary(16)),
        "source_version": [f"{generation}:{doc_id}" for doc_id in doc_ids],
        "computed_at": pa.array([NOW + timedelta(minutes=5 * generation)] * count, schema.field("computed_at").type),
        "run_id": [f"run-{generation}"] * count,
    }
    return pa.table([pa.array(columns[item.name], item.type) for item in schema], schema=schema)


def make_documents(numbers: list[int], generation: int) -> tuple[pa.Table, pa.Table]:
    """The rows of ``documents``, with some kilobytes of text each, and of ``source_state``."""
    rng = random.Random(generation * 1_000_003 + numbers[0])
    at = NOW + timedelta(minutes=5 * generation)
    shared = {"source": "files", "content_hash": rng.randbytes(32), "quarantine_reason": None, "run_id": "run"}
    counts = {"num_tokens": 2000, "num_segments": 50, "num_topics": 0, "num_paragraphs": 0, "num_sentences": 100}
    documents, states = [], []
    for number in numbers:
        doc_id = name_document(number)
        own = {"doc_id": doc_id, "source_version": f"{generation}:{number}"}
        text = {"uri": "", "feature_version": "f1", "title": doc_id, "text": " ".join(rng.choices(WORDS, k=1000))}
        documents.append({**own, **shared, **counts, **text, "updated_at": at})
        times = {"size_bytes": 6000, "mtime_ns": generation, "ctime_ns": generation, "object_id": str(number)}
        failures = {"quarantine_attempts": 0, "first_failed_at": None, "retry_at": None}
        states.append({**own, **shared, **times, **failures, "first_seen_at": NOW, "stated_at": at})
    return (
        pa.Table.from_pylist(documents, schema=DOCUMENTS_SCHEMA),
        pa.Table.from_pylist(states, schema=SOURCE_STATE_SCHEMA),
    )


def write(store: FeatureStore, chunks: Iterator[list[int]], generation: int) -> Snapshot:
    """One run: the documents of each chunk get new rows."""
    described: dict[str, Any] = {"kind": "refresh", "feature_version": "f1", "recipe": {}, "retention": RETENTION}
    transaction = store.begin(lease=hold_lease(store), run_id=f"run-{generation}", **described)
    for numbers in chunks:
        documents, states = make_documents(numbers, generation)
        transaction.write_chunk(
            features=make_features(numbers, generation), documents=documents, deleted_doc_ids=(), source_state=states
        )
    return transaction.publish(checkpoint={}, run={})


def build(folder: Path, num_documents: int) -> FeatureStore:
    """A store with all documents, published once and kept up once."""
    store = FeatureStore.open_or_create(folder, dim=DIM)
    if not store.pointer().sequence:
        starts = range(0, num_documents, DOCUMENTS_PER_CHUNK)
        write(store, (list(range(at, min(at + DOCUMENTS_PER_CHUNK, num_documents))) for at in starts), 0)
        keep_up(store, UpkeepOptions(max_small_files=1), lease=hold_lease(store), run_id="build")
        forget_all_but(store, 1)
    return store


def forget_all_but(store: FeatureStore, number: int) -> None:
    """What ``gc`` does where this number of snapshots is kept."""
    options = UpkeepOptions(retention=Retention(keep_snapshots=number))
    collect_garbage(store, options, lease=hold_lease(store), run_id="gc")


def time_lookups(
    snapshots: dict[str, Snapshot], num_documents: int, seed: int, count: int = LOOKUPS
) -> dict[str, list[float]]:
    """Times of one key each, all columns, in ms; the snapshots take turns."""
    rng = random.Random(seed)
    times_ms: dict[str, list[float]] = {name: [] for name in snapshots}
    for turn in range(count + 20):
        doc_id, at = name_document(rng.randrange(num_documents)), rng.randrange(ROWS_PER_DOCUMENT)
        where = pc.field("key") == pa.scalar(row_key("files", doc_id, "sentence", at), pa.binary(KEY_BYTES))
        for name, snapshot in snapshots.items():
            table = snapshot.open_table("features")
            start_s = time.perf_counter()
            found = table.read(table.schema.names, where=where).num_rows
            if found != 1:
                raise SystemExit(f"{found} rows of {doc_id} {at} in {name}")
            if turn >= 20:
                times_ms[name].append(1e3 * (time.perf_counter() - start_s))
    return times_ms


def refresh(store: FeatureStore, progress: Progress, num_documents: int, *, with_upkeep: bool) -> None:
    """One refresh, and now and then a look at the store."""
    number = progress.num_refreshes + 1
    chosen = random.Random(number).sample(range(num_documents), DOCUMENTS_PER_REFRESH)
    start_s = time.perf_counter()
    snapshot = write(store, iter([chosen]), number)
    middle_s = time.perf_counter()
    if with_upkeep and keep_up(store, UpkeepOptions(), lease=hold_lease(store), run_id=f"upkeep-{number}"):
        progress.merged_at.append(number)
        snapshot = store.open_snapshot()
    progress.refresh_s.append(middle_s - start_s)
    progress.upkeep_s.append(time.perf_counter() - middle_s)
    num_files, size_bytes = measure_store(store)
    seen: dict[str, float] = {"number": number, "num_files": num_files, "size_bytes": size_bytes}
    if number % MEASURED_EVERY == 0:
        times_ms = time_lookups({"store": snapshot}, num_documents, number, LOOKUPS_DURING)["store"]
        seen |= {"p50_ms": float(np.percentile(times_ms, 50))}
    progress.seen.append(seen)
    progress.num_refreshes = number


def carry_on(folder: Path, *, name: str, num_refreshes: int, num_documents: int, until_s: float) -> Progress | None:
    """Refreshes one store until it has had enough of them, or time is up (None)."""
    file = folder / f"{name}.json"
    progress = Progress(**json.loads(file.read_text())) if file.exists() else Progress()
    store = build(folder / name, num_documents)
    with_upkeep = name == "with"
    tidy = Table.tidy
    if not with_upkeep:
        Table.tidy = lambda self, indexed_columns: self  # type: ignore[method-assign]
        transaction_module.MAX_UNREAD_VERSIONS = 1 << 30
    try:
        while progress.num_refreshes < num_refreshes and time.perf_counter() < until_s:
            refresh(store, progress, num_documents, with_upkeep=with_upkeep)
            file.write_text(json.dumps(asdict(progress)))
    finally:
        Table.tidy = tidy  # type: ignore[method-assign]
        transaction_module.MAX_UNREAD_VERSIONS = DEFAULT_MAX_UNREAD
    return progress if progress.num_refreshes >= num_refreshes else None


DEFAULT_MAX_UNREAD = transaction_module.MAX_UNREAD_VERSIONS


def report(folder: Path, progress: dict[str, Progress], num_documents: int) -> None:
    """Records the course of both stores, and how they compare with a fresh one at the end."""
    config = {"num_rows": num_documents * ROWS_PER_DOCUMENT, "num_refreshes": progress["with"].num_refreshes}
    stores = {name: FeatureStore.open(folder / name) for name in progress}
    fresh = rebuild(folder, stores["with"])
    fresh_files, fresh_bytes = measure_store(fresh)
    snapshots = {name: store.open_snapshot() for name, store in {**stores, "fresh": fresh}.items()}
    times_ms = time_lookups(snapshots, num_documents, 0)
    name_of = {"with": "with upkeep", "without": "without upkeep", "fresh": "fresh store"}
    for name, values in times_ms.items():
        p99 = [float(np.percentile(values, 99))]
        record("upkeep", name_of[name], "look up 1 key", "ms", values, config=config)
        record("upkeep", name_of[name], "look up 1 key, p99", "ms", p99, config=config)
    record("upkeep", "fresh store", "files", "1", [fresh_files], config=config)
    record("upkeep", "fresh store", "disk", "MB", [fresh_bytes / 1e6], config=config)
    for name, done in progress.items():
        for seen in done.seen:
            if "p50_ms" not in seen:
                continue
            for metric, unit, value in (
                ("look up 1 key, during", "ms", seen["p50_ms"]),
                ("files, during", "1", seen["num_files"]),
                ("disk, during", "of a fresh store", seen["size_bytes"] / fresh_bytes),
            ):
                record("upkeep", name_of[name], metric, unit, [value], x=int(seen["number"]), config=config)
        record("upkeep", name_of[name], "refresh", "s", done.refresh_s, config=config)
        peak = max(seen["size_bytes"] for seen in done.seen) / fresh_bytes
        record("upkeep", name_of[name], "disk, peak", "of a fresh store", [peak], config=config)
        most = max(seen["num_files"] for seen in done.seen)
        record("upkeep", name_of[name], "files, most", "1", [most], config=config)
    done = progress["with"]
    merges = [seconds for number, seconds in enumerate(done.upkeep_s, start=1) if number in done.merged_at]
    record("upkeep", "with upkeep", "refreshes that merge", "1", [len(merges)], config=config)
    if merges:
        record("upkeep", "with upkeep", "merging", "s", merges, config=config)
    forget_all_but(stores["with"], 1)
    num_files, size_bytes = measure_store(stores["with"])
    record("upkeep", "with upkeep", "files, after gc keeping 1 snapshot", "1", [num_files], config=config)
    share = [size_bytes / fresh_bytes]
    record("upkeep", "with upkeep", "disk, after gc keeping 1 snapshot", "of a fresh store", share, config=config)


def rebuild(folder: Path, source: FeatureStore) -> FeatureStore:
    """A fresh store of the same rows."""
    store = FeatureStore.open_or_create(folder / "fresh", dim=DIM)
    if store.pointer().sequence:
        return store
    snapshot = source.open_snapshot()
    documents = snapshot.open_table("documents").read(DOCUMENTS_SCHEMA.names)
    states = snapshot.open_table("source_state").read(SOURCE_STATE_SCHEMA.names)
    transaction = store.begin(lease=hold_lease(store), run_id="fresh", kind="backfill", feature_version="f1", recipe={})
    for at in range(0, documents.num_rows, DOCUMENTS_PER_CHUNK):
        chosen = documents.slice(at, DOCUMENTS_PER_CHUNK)
        names = chosen["doc_id"].to_pylist()
        transaction.write_chunk(
            features=pa.Table.from_batches(snapshot.scan_features(features_schema(DIM).names, doc_ids=names)),
            documents=chosen,
            deleted_doc_ids=(),
            source_state=states.filter(pc.is_in(states["doc_id"], chosen["doc_id"].combine_chunks())),
        )
    transaction.publish(checkpoint={}, run={})
    keep_up(store, UpkeepOptions(max_small_files=1), lease=hold_lease(store), run_id="build")
    forget_all_but(store, 1)
    return store


def main() -> None:
    """Carries both stores on, and reports once they are done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--refreshes", type=int, default=288)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--max-seconds", type=float, default=1e9)
    given = parser.parse_args()
    until_s = time.perf_counter() + given.max_seconds
    num_documents = given.rows // ROWS_PER_DOCUMENT
    transaction_module.RETAINED_AGE = timedelta(0)
    given.folder.mkdir(parents=True, exist_ok=True)
    progress = {}
    for name in ("with", "without"):
        done = carry_on(
            given.folder, name=name, num_refreshes=given.refreshes, num_documents=num_documents, until_s=until_s
        )
        if done is None:
            print("time is up: the same command continues")
            return
        progress[name] = done
    start("upkeep")
    report(given.folder, progress, num_documents)


if __name__ == "__main__":
    main()
