from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lodestream.errors import CommitStateUnknown, FencedError
from lodestream.schema import SOURCE_STATE_SCHEMA, TABLES
from lodestream.storage import transaction as transaction_module
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.snapshot import Retention
from lodestream.storage.store import FeatureStore
from lodestream.storage.table import Table
from lodestream.storage.transaction import Transaction
from tests.support.store_rows import (
    DIM,
    begin,
    make_documents,
    make_features,
    make_states,
    publish,
    read_contents,
    write,
)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)


def end(transaction: Transaction, **checkpoint: Any) -> None:
    transaction.publish(checkpoint=checkpoint, run={})


def test_nothing_is_visible_before_publishing(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    reader = store.open_snapshot()
    transaction = begin(store)
    write(transaction, {"a": ["2"], "b": ["3"]})
    assert read_contents(store.open_snapshot()) == {"a": ["1"]}
    assert read_contents(transaction.base) == {"a": ["2"], "b": ["3"]}
    end(transaction)
    assert read_contents(store.open_snapshot()) == {"a": ["2"], "b": ["3"]}
    assert read_contents(reader) == {"a": ["1"]}


def test_base_pins_its_moment(store: FeatureStore) -> None:
    transaction = begin(store)
    write(transaction, {"a": ["1"]})
    earlier = transaction.base
    write(transaction, {"a": ["2"]})
    assert read_contents(earlier) == {"a": ["1"]}
    assert read_contents(transaction.base) == {"a": ["2"]}
    assert transaction.base.published_at is None


def test_deleting(store: FeatureStore) -> None:
    publish(store, {"a": ["1"], "b": ["2"], "c": ["3"]})
    publish(store, {}, deleted=["b", "never there"])
    assert read_contents(publish(store, {"d": ["4"]}, deleted=["a"])) == {"c": ["3"], "d": ["4"]}


def test_deleting_everything(store: FeatureStore) -> None:
    publish(store, {"a": ["1"], "b": []})
    assert read_contents(publish(store, {}, deleted=["a", "b"])) == {}
    assert read_contents(publish(store, {"b": ["2"]})) == {"b": ["2"]}


def test_document_without_features(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    transaction = begin(store)
    documents = make_documents({"a": []})
    transaction.write_chunk(features=make_features({}), documents=documents, deleted_doc_ids=[])
    snapshot = transaction.publish(checkpoint={}, run={})
    assert snapshot.get_features("a").num_rows == 0 and snapshot.count_documents() == 1


def test_quarantined_document_keeps_its_features(store: FeatureStore) -> None:
    before = publish(store, {"a": ["1", "2"], "b": ["3"]}).get_features("a")
    transaction = begin(store)
    transaction.write_chunk(
        features=make_features({"b": ["4"]}),
        documents=pa.concat_tables(
            [make_documents({"a": ["1", "2"]}, quarantine_reason="torn"), make_documents({"b": ["4"]})]
        ),
        deleted_doc_ids=[],
        keep_features_of=["a"],
    )
    snapshot = transaction.publish(checkpoint={}, run={})
    assert snapshot.get_features("a").equals(before)
    document = snapshot.get_document("a")
    assert document is not None and document["quarantine_reason"] == "torn"
    assert read_contents(snapshot) == {"a": ["1", "2"], "b": ["4"]}


def test_source_state_alone(store: FeatureStore) -> None:
    """A document that was touched, or that never could be used, changes its state and nothing else."""
    before = publish(store, {"a": ["1"], "b": ["2"]})
    transaction = begin(store)
    states = pa.concat_tables([make_states({"a": ["1"]}, size_bytes=99), make_states({"broken": []}, size_bytes=7)])
    transaction.write_chunk(
        features=make_features({}), documents=make_documents({}), deleted_doc_ids=[], source_state=states
    )
    snapshot = transaction.publish(checkpoint={}, run={})
    found = snapshot.source_states(["doc_id", "size_bytes"]).to_pylist()
    assert {row["doc_id"]: row["size_bytes"] for row in found} == {"a": 99, "b": 1, "broken": 7}
    assert {name: snapshot.tables[name] for name in ("features", "documents")} == {
        name: before.tables[name] for name in ("features", "documents")
    }
    assert before.source_states().schema.equals(SOURCE_STATE_SCHEMA) and before.source_states().num_rows == 2
    assert publish(store, {}, deleted=["broken"]).source_states(["doc_id"]).num_rows == 2


def test_pointer_after_publishing(store: FeatureStore) -> None:
    transaction = begin(store, run_id="r1")
    write(transaction, {"a": ["1"]})
    snapshot = transaction.publish(checkpoint={"files": 7}, run={"documents": 1})
    pointer = store.pointer()
    assert (pointer.sequence, pointer.run_id, pointer.feature_version) == (1, "r1", "f1")
    assert (pointer.checkpoint, pointer.run, pointer.staged) == ({"files": 7}, {"documents": 1}, None)
    assert pointer.recipe == {"model": "toy"} and pointer.tables == snapshot.tables
    assert pointer.published_at == pointer.checked_at == snapshot.published_at


def test_empty_run_publishes_no_snapshot(store: FeatureStore) -> None:
    published = publish(store, {"a": ["1"]})
    before = store.pointer()
    transaction = begin(store, run_id="r2")
    write(transaction, {}, deleted=["never there"])
    snapshot = transaction.publish(checkpoint={"files": "later"}, run={"documents": 0})
    after = store.pointer()
    assert (snapshot.sequence, after.tables, after.published_at) == (1, published.tables, before.published_at)
    assert after.checkpoint == {"files": "later"} and after.run == {"documents": 0} and after.run_id == "run"
    assert after.checked_at is not None and before.checked_at is not None and after.checked_at > before.checked_at
    assert all(Table.head_version.fget(table) == table.version for table in (snapshot._features, snapshot._documents))  # type: ignore[attr-defined]


def test_empty_first_run_publishes(store: FeatureStore) -> None:
    snapshot = begin(store).publish(checkpoint={}, run={})
    assert snapshot.sequence == 1 and snapshot.count_documents() == 0
    assert snapshot.find_segments([b"0" * 16]).num_rows == 0
    assert read_contents(store.open_snapshot()) == {}


def test_new_feature_version_alone_is_a_new_snapshot(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    snapshot = begin(store, feature_version="f2").publish(checkpoint={}, run={})
    assert (snapshot.sequence, snapshot.feature_version) == (2, "f2")
    assert store.open_snapshot(1).feature_version == "f1"


def test_resumes_staged_chunks(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    write(begin(store, run_id="killed"), {"b": ["2"]})
    staged = store.pointer().staged
    assert staged is not None and (staged.run_id, staged.num_chunks, staged.feature_version) == ("killed", 1, "f1")
    transaction = begin(store, run_id="next")
    assert transaction.resumed
    assert read_contents(transaction.base) == {"a": ["1"], "b": ["2"]}
    write(transaction, {"c": ["3"]})
    staged = store.pointer().staged
    assert staged is not None and (staged.run_id, staged.num_chunks) == ("next", 2)
    end(transaction)
    assert read_contents(store.open_snapshot()) == {"a": ["1"], "b": ["2"], "c": ["3"]}


def test_resumed_work_alone_is_published(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    write(begin(store), {"b": ["2"]})
    snapshot = begin(store).publish(checkpoint={}, run={})
    assert snapshot.sequence == 2 and read_contents(snapshot) == {"a": ["1"], "b": ["2"]}


def test_drops_staged_chunks_of_another_feature_version(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    write(begin(store, feature_version="f2"), {"b": ["2"]})
    transaction = begin(store)
    assert not transaction.resumed and store.pointer().staged is None
    write(transaction, {"c": ["3"]})
    end(transaction)
    assert read_contents(store.open_snapshot()) == {"a": ["1"], "c": ["3"]}


def test_unreadable_staged_chunks_are_done_again(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    publish(store, {"a": ["1"]})
    killed = begin(store, run_id="killed")
    write(killed, {"b": ["2"]})
    for manifest in sorted((store.root / "features.lance" / "_versions").glob("*.manifest"))[:1]:
        manifest.unlink()  # the newest: versions are numbered downward
    transaction = begin(store)
    assert not transaction.resumed and "killed" in caplog.text
    assert read_contents(transaction.base) == {"a": ["1"]}
    write(transaction, {"b": ["9"]})
    end(transaction)
    assert read_contents(store.open_snapshot()) == {"a": ["1"], "b": ["9"]}


def test_abandoning(store: FeatureStore) -> None:
    publish(store, {"a": ["1"]})
    transaction = begin(store)
    write(transaction, {"b": ["2"]})
    transaction.abandon()
    assert store.pointer().staged is None
    following = begin(store)
    assert not following.resumed and read_contents(following.base) == {"a": ["1"]}
    assert read_contents(publish(store, {"c": ["3"]})) == {"a": ["1"], "c": ["3"]}


def test_ended_transaction_refuses(store: FeatureStore) -> None:
    transaction = begin(store)
    end(transaction)
    for step in (lambda: write(transaction, {"a": ["1"]}), lambda: end(transaction), transaction.abandon):
        with pytest.raises(ValueError, match="has ended"):
            step()


def test_overtaken_writer_is_fenced_when_it_stages(store: FeatureStore) -> None:
    first, second = begin(store, run_id="first"), begin(store, run_id="second")
    assert second.epoch == first.epoch + 1
    with pytest.raises(FencedError, match="let the other run end"):
        write(first, {"a": ["first"]})
    write(second, {"a": ["second"]})
    end(second)
    assert read_contents(store.open_snapshot()) == {"a": ["second"]}


def test_overtaken_writer_is_fenced_when_it_publishes(store: FeatureStore) -> None:
    first = begin(store, run_id="first")
    write(first, {"a": ["first"]})
    second = begin(store, run_id="second")
    with pytest.raises(FencedError):
        end(first)
    with pytest.raises(FencedError):
        first.abandon()
    write(second, {"b": ["second"]})
    end(second)
    assert read_contents(store.open_snapshot()) == {"a": ["first"], "b": ["second"]}


def test_two_begin_at_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_and_swap = LocalRegister.cas

    def intrude(register: LocalRegister, expected: str | None, record: dict[str, Any]) -> str:
        if register.folder.name == "pointer":
            monkeypatch.setattr(LocalRegister, "cas", compare_and_swap)
            begin(store, run_id="other")
        return compare_and_swap(register, expected, record)

    monkeypatch.setattr(LocalRegister, "cas", intrude)
    with pytest.raises(FencedError, match="epoch 2, this one has 1"):
        begin(store)


@pytest.mark.parametrize("was_accepted", [True, False])
def test_lost_reply(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, was_accepted: bool) -> None:
    """The register cannot tell whether the swing was accepted: the nonce settles it."""
    publish(store, {"a": ["1"]})
    transaction = begin(store)
    write(transaction, {"b": ["2"]})
    compare_and_swap = LocalRegister.cas

    def lose(register: LocalRegister, expected: str | None, record: dict[str, Any]) -> str:
        if was_accepted:
            compare_and_swap(register, expected, record)
        raise CommitStateUnknown("the reply was lost")

    monkeypatch.setattr(LocalRegister, "cas", lose)
    if was_accepted:
        assert transaction.publish(checkpoint={}, run={}).sequence == 2
        assert read_contents(store.open_snapshot()) == {"a": ["1"], "b": ["2"]}
        return
    with pytest.raises(CommitStateUnknown):
        end(transaction)
    assert read_contents(store.open_snapshot()) == {"a": ["1"]}


def test_failed_cleanup_does_not_fail_the_run(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(table: Table, versions: set[int]) -> int:
        raise transaction_module.StoreError("no rights")

    monkeypatch.setattr(transaction_module, "MAX_UNREAD_VERSIONS", 0)
    monkeypatch.setattr(transaction_module, "RETAINED_AGE", timedelta(0))
    monkeypatch.setattr(Table, "remove_versions", fail)
    assert publish(store, {"a": ["1"]}).sequence == 1
    assert "no rights" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"documents": make_documents({"a": ["1"]}).take([0, 0])}, "a doc_id comes twice"),
        ({"source_state": make_states({"b": ["1"]}).take([0, 0])}, "a doc_id comes twice"),
        ({"source_state": make_states({"b": ["1"]}), "deleted_doc_ids": ["b"]}, "both written and deleted"),
        ({"deleted_doc_ids": ["a"]}, "both written and deleted"),
        ({"keep_features_of": ["b"]}, "not in the chunk"),
        ({"keep_features_of": ["a"]}, "not replaced"),
        ({"features": make_features({"b": ["1"]})}, "not replaced"),
        ({"features": make_features({"a": ["1"]}).take([0, 0, 1])}, "a key comes twice"),
    ],
)
def test_contradictory_chunks(store: FeatureStore, changes: dict[str, Any], reason: str) -> None:
    transaction = begin(store)
    chunk = {
        "features": make_features({"a": ["1"]}),
        "documents": make_documents({"a": ["1"]}),
        "deleted_doc_ids": [],
    }
    with pytest.raises(ValueError, match=reason):
        transaction.write_chunk(**(chunk | changes))
    assert store.pointer().staged is None


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=1)])
def test_old_versions_are_removed_unless_named_or_young(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, age: timedelta
) -> None:
    monkeypatch.setattr(transaction_module, "MAX_UNREAD_VERSIONS", 0)
    monkeypatch.setattr(transaction_module, "RETAINED_AGE", age)
    for number in range(Retention().keep_snapshots + 4):
        transaction = begin(store)
        for part in range(2):
            write(transaction, {"a": [f"{number}-{part}"]})
        last = transaction.publish(checkpoint={}, run={})
    for name in TABLES:
        table = last.open_table(name)
        named = store.pointer().named_versions(name, "")
        assert len(named) == Retention().keep_snapshots
        assert set(table.list_versions()) == (named if age == timedelta(0) else set(range(1, table.version + 1)))
    for sequence in range(5, last.sequence + 1):
        assert read_contents(store.open_snapshot(sequence)) == {"a": [f"{sequence - 1}-1"]}


def test_overtaken_writer_removes_nothing(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It slept between publishing and cleaning up; what it knows of the pointer is long out of date."""
    monkeypatch.setattr(transaction_module, "MAX_UNREAD_VERSIONS", 0)
    monkeypatch.setattr(transaction_module, "RETAINED_AGE", timedelta(0))
    sleeper = begin(store)
    write(sleeper, {"a": ["1"]})

    def sleep(step: str) -> None:
        if step == "publish.swung":
            monkeypatch.setattr(transaction_module.steps, "reach", lambda step: None)
            write(begin(store), {"b": ["2"]})

    monkeypatch.setattr(transaction_module.steps, "reach", sleep)
    end(sleeper)
    versions = store.open_snapshot().open_table("documents").list_versions()
    assert sorted(versions) == list(range(1, max(versions) + 1))
    assert read_contents(publish(store, {"c": ["3"]})) == {"a": ["1"], "b": ["2"], "c": ["3"]}
