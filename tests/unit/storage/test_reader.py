from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from lodestream.errors import StoreCorrupt
from lodestream.schema import features_schema
from lodestream.storage.reader import SEGMENT_COLUMNS, STATE_COLUMNS, Snapshot, locate_table
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import (
    DIM,
    begin,
    make_documents,
    make_features,
    make_fingerprint,
    publish,
    read_contents,
    write,
)

HOSTILE = [
    "it's",
    'double "quotes"',
    "new\nline",
    "nul\x00byte",
    "back\\slash",
    "é/\U0001f600/中文",
    "per%cent_",
    "' OR '1'='1",
    "'); DELETE FROM features; --",
    "",
    " ",
    "x" * 4000,
    "NULL",
    "-1",
    "a,b",
]
CONTENTS = {doc_id: [f"{number}a", f"{number}b"] for number, doc_id in enumerate(HOSTILE)}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = FeatureStore.open_or_create(str(tmp_path_factory.mktemp("reader") / "store"), dim=DIM)
    return publish(store, CONTENTS)


@pytest.mark.parametrize("doc_id", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names(snapshot: Snapshot, doc_id: str) -> None:
    rows = snapshot.get_features(doc_id)
    wanted = make_features({doc_id: CONTENTS[doc_id]})
    assert rows.schema.equals(features_schema(DIM), check_metadata=True)
    assert rows.equals(wanted)
    document = snapshot.get_document(doc_id)
    assert document is not None and document["doc_id"] == doc_id
    assert document["text"] == " ".join(CONTENTS[doc_id])


def test_unknown_names(snapshot: Snapshot) -> None:
    assert snapshot.get_features("nobody").num_rows == 0
    assert snapshot.get_document("nobody") is None
    assert list(snapshot.scan_features(["doc_id"], doc_ids=["nobody"])) == []
    assert list(snapshot.scan_features(["doc_id"], doc_ids=[])) == []


def test_features_by_granularity_and_ordinal(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    rows = make_features({"a": [str(number) for number in range(12)]})
    shuffled = rows.take([12, 3, 1, 11, 0, 2, 10, 4, 9, 5, 8, 6, 7])
    transaction = begin(store)
    transaction.write_chunk(features=shuffled, documents=make_documents({"a": ["text"]}), deleted_doc_ids=[])
    found = transaction.publish(checkpoint={}, run={})
    assert found.get_features("a").equals(rows)
    assert found.get_features("a", "document").equals(rows.slice(12))


@pytest.mark.parametrize("min_density", [None, 0.0, 0.3, 0.5, 1.0, 1.1])
@pytest.mark.parametrize("granularity", [None, "sentence", "document", "topic"])
def test_scan_filters(snapshot: Snapshot, granularity: str | None, min_density: float | None) -> None:
    chosen = HOSTILE[::2]
    batches = snapshot.scan_features(
        ["key", "codes"], granularity=granularity, min_density=min_density, doc_ids=chosen, batch_rows=4
    )
    found = [row["key"] for batch in batches for row in batch.to_pylist()]
    wanted = [
        row["key"]
        for row in make_features(CONTENTS).to_pylist()
        if row["doc_id"] in chosen
        and granularity in (None, row["granularity"])
        and (min_density is None or row["density"] >= min_density)
    ]
    assert sorted(found) == sorted(wanted)


def test_scan_of_many_documents(tmp_path: Path) -> None:
    contents = {f"d{number}": [] for number in range(2500)}
    store = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    found = publish(store, contents)
    batches = found.scan_features(["doc_id"], doc_ids=[*contents, "nobody"])
    assert sorted(pa.Table.from_batches(batches)["doc_id"].to_pylist()) == sorted(contents)


def test_find_segments(snapshot: Snapshot) -> None:
    wanted = [make_fingerprint("0a"), make_fingerprint("7b"), make_fingerprint("nowhere"), make_fingerprint("0a")]
    rows = snapshot.find_segments(wanted)
    assert rows.schema.names == list(SEGMENT_COLUMNS)
    assert sorted(rows["doc_id"].to_pylist()) == sorted([HOSTILE[0], HOSTILE[7]])
    assert set(rows["fingerprint"].to_pylist()) == {make_fingerprint("0a"), make_fingerprint("7b")}
    assert rows["codes"].type == features_schema(DIM).field("codes").type


def test_find_segments_leaves_upper_rows_out(snapshot: Snapshot) -> None:
    assert snapshot.find_segments([make_fingerprint("0a|0b")]).num_rows == 0
    assert snapshot.find_segments([]).schema.names == list(SEGMENT_COLUMNS)


def test_find_segments_among_thousands(tmp_path: Path) -> None:
    """More fingerprints than one look-up takes, over indexed and over staged rows, shared ones once for each document."""  # noqa: E501
    store = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    contents = {f"d{number}": [f"own {number}", "shared"] for number in range(1200)}
    publish(store, contents)
    transaction = begin(store)
    write(transaction, {f"e{number}": [f"staged {number}", "shared"] for number in range(300)})
    names = [f"own {number}" for number in range(0, 1200, 2)] + [f"staged {number}" for number in range(300)]
    fingerprints = [make_fingerprint(name) for name in [*names, "shared", *(f"none {n}" for n in range(900))]]
    rows = transaction.base.find_segments(fingerprints)
    assert rows.num_rows == 600 + 300 + 1500
    assert set(rows["fingerprint"].to_pylist()) == {make_fingerprint(name) for name in [*names, "shared"]}


def test_document_states(snapshot: Snapshot) -> None:
    states = snapshot.document_states()
    assert states.schema.names == list(STATE_COLUMNS)
    wanted = make_documents(CONTENTS).select(list(STATE_COLUMNS))
    assert states.sort_by("doc_id").equals(wanted.sort_by("doc_id"))


def test_counts(snapshot: Snapshot) -> None:
    number = len(HOSTILE)
    assert snapshot.count_features() == {"sentence": 2 * number, "paragraph": 0, "topic": 0, "document": number}
    assert snapshot.count_documents() == number


def test_description(snapshot: Snapshot) -> None:
    assert (snapshot.sequence, snapshot.feature_version, snapshot.run_id) == (1, "f1", "run")
    assert snapshot.recipe == {"model": "toy"} and snapshot.published_at is not None


def test_pickles(snapshot: Snapshot) -> None:
    copy = pickle.loads(pickle.dumps(snapshot))
    assert copy.tables == snapshot.tables and copy.published_at == snapshot.published_at
    assert copy.get_features(HOSTILE[0]).equals(snapshot.get_features(HOSTILE[0]))


def test_many_threads(snapshot: Snapshot) -> None:
    failures = []

    def look_up(offset: int) -> None:
        for number in range(20):
            doc_id = HOSTILE[(number + offset) % len(HOSTILE)]
            if not snapshot.get_features(doc_id).equals(make_features({doc_id: CONTENTS[doc_id]})):
                failures.append(doc_id)

    threads = [threading.Thread(target=look_up, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_missing_table_files(tmp_path: Path) -> None:
    store = FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    snapshot = publish(store, {"a": ["1"]})
    assert read_contents(snapshot) == {"a": ["1"]}
    folder = locate_table(store.location, "documents", "").path
    folder.rename(folder.with_suffix(".away"))
    with pytest.raises(StoreCorrupt, match="documents.lance is gone"):
        store.open_snapshot()
