"""Rows for the tests of the store: small tables with all columns, and a view of a store's content that can be
compared."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from lodestream.errors import CommitConflict, LeaseHeld, NotFoundError
from lodestream.schema import (
    DOCUMENTS_SCHEMA,
    FINGERPRINT_BYTES,
    KEY_BYTES,
    TIMESTAMP,
    features_schema,
    row_key,
)
from lodestream.storage.codec import encode_rows
from lodestream.storage.coordination import open_lease
from lodestream.storage.lease import DEFAULT_TTL_S, Lease, break_lease, read_lease
from lodestream.storage.migration import derive_states
from lodestream.storage.reader import Snapshot
from lodestream.storage.snapshot import Retention
from lodestream.storage.store import FeatureStore
from lodestream.storage.transaction import Transaction

DIM = 8
COMPUTED_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def make_fingerprint(name: str) -> bytes:
    """A fingerprint that equal names share."""
    return row_key("fingerprint", name, "", 0)[:FINGERPRINT_BYTES]


def make_features(contents: Mapping[str, Sequence[str]], *, run_id: str = "run", dim: int = DIM) -> pa.Table:
    """One sentence row for each string of each document, and one document row; vectors follow from the strings."""
    names = [(doc_id, "sentence", i, text) for doc_id, texts in contents.items() for i, text in enumerate(texts)]
    names += [(doc_id, "document", 0, "|".join(texts)) for doc_id, texts in contents.items()]
    count = len(names)
    seeds = [int.from_bytes(make_fingerprint(text)[:4], "little") for *_, text in names]
    vectors = np.array([np.random.default_rng(seed).normal(size=dim) for seed in seeds], dtype=np.float32)
    codes, scales, norms = encode_rows(vectors.reshape(count, dim))
    schema = features_schema(dim)
    columns = {
        "key": pa.array([row_key("files", *name[:3]) for name in names], pa.binary(KEY_BYTES)),
        "doc_id": [name[0] for name in names],
        "granularity": [name[1] for name in names],
        "ordinal": [name[2] for name in names],
        "parent": [-1 if name[1] == "document" else 0 for name in names],
        "kind": ["" if name[1] == "document" else "text" for name in names],
        "char_start": [0] * count,
        "char_end": [len(name[3]) for name in names],
        "token_count": [len(name[3].split()) + 2 for name in names],
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), type=schema.field("codes").type),
        "scale": pa.array(scales),
        "norm": pa.array(norms),
        "density": pa.array(np.array([(seed % 5) / 4 for seed in seeds], dtype=np.float16)),
        "fingerprint": pa.array([make_fingerprint(name[3]) for name in names], pa.binary(FINGERPRINT_BYTES)),
        "source_version": ["v1"] * count,
        "computed_at": pa.array([COMPUTED_AT] * count, TIMESTAMP),
        "run_id": [run_id] * count,
    }
    return pa.table({field.name: _as_array(columns[field.name], field.type) for field in schema}, schema=schema)


def make_documents(
    contents: Mapping[str, Sequence[str]], *, run_id: str = "run", quarantine_reason: str | None = None
) -> pa.Table:
    """One row a document."""
    rows = [
        {
            "doc_id": doc_id,
            "source": "files",
            "uri": "file:///" + doc_id,
            "content_hash": make_fingerprint(" ".join(texts)) * 2,
            "source_version": "v1",
            "feature_version": "f1",
            "title": doc_id[:20],
            "text": " ".join(texts),
            "num_tokens": sum(len(text.split()) for text in texts),
            "num_segments": len(texts),
            "num_topics": 0,
            "num_paragraphs": 0,
            "num_sentences": len(texts),
            "quarantine_reason": quarantine_reason,
            "updated_at": COMPUTED_AT,
            "run_id": run_id,
        }
        for doc_id, texts in contents.items()
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS_SCHEMA)


def make_states(
    contents: Mapping[str, Sequence[str]], *, run_id: str = "run", size_bytes: int | None = None
) -> pa.Table:
    """One row of ``source_state`` a document; the size is that of its texts unless given."""
    documents = make_documents(contents, run_id=run_id)
    sizes = [len(text) if size_bytes is None else size_bytes for text in documents["text"].to_pylist()]
    states = derive_states(documents, run_id=run_id)
    column = states.schema.get_field_index("size_bytes")
    return states.set_column(column, states.schema.field(column), pa.array(sizes, pa.int64()))


def take_lease(store: FeatureStore) -> Lease:
    """The store's lease without a heartbeat, taken away from whoever has it."""
    register = open_lease(store.location, ttl_s=DEFAULT_TTL_S)
    lease = store.open_lease("a test")
    while True:
        try:
            if (found := read_lease(register)) is not None and not found[0].released:
                break_lease(register, found[0].epoch)
            lease.acquire()
            return lease
        except (LeaseHeld, CommitConflict, NotFoundError):  # another process was faster
            time.sleep(0.01)


def begin(
    store: FeatureStore, *, run_id: str = "run", feature_version: str = "f1", lease: Lease | None = None
) -> Transaction:
    """Begin a transaction of feature version ``f1``; without a lease, it is taken from whoever has it, who counts as
    killed."""
    described: dict[str, Any] = {"run_id": run_id, "feature_version": feature_version}
    return store.begin(lease=lease or take_lease(store), kind="backfill", recipe={"model": "toy"}, **described)


def keep_snapshots(store: FeatureStore, number: int) -> None:
    """From now on so many snapshots are kept."""
    lease = take_lease(store)
    retention = Retention(keep_snapshots=number)
    store.begin(
        lease=lease, run_id="keep", kind="upkeep", feature_version="f1", recipe={"model": "toy"}, retention=retention
    ).abandon()
    lease.release()


def leave_unfinished(store: FeatureStore, contents: Mapping[str, Sequence[str]], *, run_id: str) -> None:
    """Stage one chunk as a run that was killed so long ago that its lease has run out."""
    lease = take_lease(store)
    write(begin(store, run_id=run_id, lease=lease), contents)
    lease.release()


def write(
    transaction: Transaction, contents: Mapping[str, Sequence[str]], *, deleted: Sequence[str] = (), run_id: str = "run"
) -> None:
    """Write one chunk that gives each document these texts."""
    transaction.write_chunk(
        features=make_features(contents, run_id=run_id),
        documents=make_documents(contents, run_id=run_id),
        deleted_doc_ids=deleted,
        source_state=make_states(contents, run_id=run_id),
    )


def publish(store: FeatureStore, contents: Mapping[str, Sequence[str]], *, deleted: Sequence[str] = ()) -> Snapshot:
    """Write one chunk and publish it."""
    lease = take_lease(store)
    transaction = begin(store, lease=lease)
    write(transaction, contents, deleted=deleted)
    snapshot = transaction.publish(checkpoint={"files": "cursor"}, run={"documents": {"seen": len(contents)}})
    lease.release()
    return snapshot


def read_contents(snapshot: Snapshot) -> dict[str, list[str]]:
    """The texts of all documents; fails unless the rows of the other tables are exactly those that belong to them."""
    documents = read_rows(snapshot, "documents")
    contents = {row["doc_id"]: row["text"].split() for row in documents}
    states = {row["doc_id"]: row["size_bytes"] for row in read_rows(snapshot, "source_state")}
    assert states == {row["doc_id"]: len(row["text"]) for row in documents}, "source_state is of another state"
    wanted = {row["key"]: row for row in make_features(contents, dim=snapshot.dim).to_pylist()}
    found = read_rows(snapshot, "features")
    assert len(found) == len({row["key"] for row in found}), "a key comes twice"
    assert {row["key"] for row in found} == wanted.keys(), "features and documents are of different states"
    for row in found:
        assert row["codes"] == wanted[row["key"]]["codes"], row["doc_id"]
    return contents


def read_rows(snapshot: Snapshot, table: str) -> list[dict[str, Any]]:
    """All rows of a table, past the indexes."""
    source = snapshot.open_table(table)
    rows: list[dict[str, Any]] = source.read(source.schema.names, with_index=False).to_pylist()
    return rows


def _as_array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
