from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import ConfigError, FencedError, GuardRefused, LeaseLost, NotFoundError, StoreError
from lodestream.storage import steps, version_upkeep
from lodestream.storage.lease import Lease
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage, keep_up
from lodestream.storage.purge import plan_purge, purge_documents
from lodestream.storage.repair import repair_store
from lodestream.storage.snapshot import Retention
from lodestream.storage.store import FeatureStore, Snapshot, VersionWriter
from lodestream.storage.table import Table
from lodestream.storage.verify import verify_store
from lodestream.storage.version_keeper import list_slots
from tests.support.store_rows import (
    DIM,
    begin,
    make_documents,
    make_features,
    publish,
    read_rows,
    take_lease,
    write,
)

OTHER_DIM = 4
DESCRIBED: dict[str, Any] = {"dim": OTHER_DIM, "feature_version": "f2", "recipe": {"model": "other"}, "model": "/other"}
SWEEP_AFTER = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    made = FeatureStore.open_or_create(tmp_path / "store", dim=DIM)
    publish(made, {"a": ["one"], "b": ["two"]})
    return made


def add(store: FeatureStore, name: str = "b", lease: Lease | None = None) -> VersionWriter:
    lease = lease or take_lease(store)
    store.open_keeper(lease).add(name, **DESCRIBED)
    return store.begin_version(name, lease=lease, run_id="build")


def fill(writer: VersionWriter, contents: Mapping[str, Sequence[str]], deleted: Sequence[str] = ()) -> None:
    writer.write_chunk(
        features=make_features(contents, dim=OTHER_DIM),
        documents=make_documents(contents),
        deleted_doc_ids=deleted,
    )


def add_level(store: FeatureStore, name: str = "b") -> VersionWriter:
    writer = add(store, name)
    fill(writer, {"a": ["one"], "b": ["two"]})
    writer.finish(is_level=True)
    return writer


def names(snapshot: Snapshot) -> set[str]:
    return {row["doc_id"] for row in read_rows(snapshot, "features")}


def test_a_version_is_written_beside_the_served_one(store: FeatureStore) -> None:
    before = store.open_snapshot()
    writer = add(store)
    fill(writer, {"a": ["one"]})
    latest, beside = store.open_snapshot(), store.open_snapshot(version="b")
    assert (latest.sequence, latest.version, latest.tables, latest.dim) == (1, "v1", before.tables, DIM)
    assert (beside.version, beside.dim, beside.feature_version, names(beside)) == ("b", OTHER_DIM, "f2", {"a"})
    assert beside.sequence == 0 and store.open_snapshot(version="v1").sequence == 1
    assert store.pointer().find_version("b").model == "/other"
    with pytest.raises(NotFoundError, match="v1, b"):
        store.open_snapshot(version="c")


def test_what_the_sources_said_is_nobodys_but_the_runs(store: FeatureStore) -> None:
    before = read_rows(store.open_snapshot(), "source_state")
    writer = add(store)
    fill(writer, {"a": ["one"]})
    fill(writer, {}, deleted=["a"])
    assert read_rows(writer.base, "source_state") == before and names(writer.base) == set()


def test_a_killed_writer_loses_one_chunk_and_a_refresh_in_between_nothing(store: FeatureStore) -> None:
    fill(add(store), {"a": ["one"]})
    publish(store, {"c": ["three"]})
    again = store.begin_version("b", lease=take_lease(store), run_id="again")
    assert names(again.base) == {"a"}
    fill(again, {"b": ["two"]})
    assert names(store.open_snapshot(version="b")) == {"a", "b"} and names(store.open_snapshot()) == {"a", "b", "c"}


def test_an_unfinished_run_is_resumed_after_a_version_was_written(store: FeatureStore) -> None:
    write(begin(store, run_id="killed"), {"c": ["three"]})
    fill(add(store), {"a": ["one"]})
    assert begin(store).resumed


def test_promote_is_one_swing_and_goes_both_ways(store: FeatureStore) -> None:
    pinned = store.open_snapshot()
    add_level(store).promote(run={"said": 1})
    pointer, latest = store.pointer(), store.open_snapshot()
    assert (pointer.version, pointer.former, pointer.dim, pointer.sequence) == ("b", "v1", OTHER_DIM, 2)
    assert (latest.version, latest.dim, latest.model, names(latest)) == ("b", OTHER_DIM, "/other", {"a", "b"})
    assert pointer.checkpoint == {"files": "cursor"} and pointer.run == {"said": 1}
    assert names(pinned) == {"a", "b"} and pinned.dim == DIM
    assert store.open_snapshot(1).version == "v1"
    back = store.begin_version("v1", lease=take_lease(store), run_id="back")
    back.finish(is_level=True)
    back.promote(run={})
    assert (store.pointer().version, store.pointer().former, store.open_snapshot().dim) == ("v1", "b", DIM)
    assert [record.version for record in store.pointer().history] == ["v1", "b", "v1"]


def test_a_promoted_version_is_refreshed_like_any_other(store: FeatureStore) -> None:
    add_level(store).promote(run={})
    transaction = begin(store, feature_version="f2")
    transaction.write_chunk(
        features=make_features({"c": ["three"]}, dim=OTHER_DIM),
        documents=make_documents({"c": ["three"]}),
        deleted_doc_ids=["a"],
    )
    transaction.publish(checkpoint={}, run={})
    assert names(store.open_snapshot()) == {"b", "c"}
    assert names(store.open_snapshot(version="v1")) == names(store.open_snapshot(1)) == {"a", "b"}


def test_what_lies_behind_is_not_promoted(store: FeatureStore) -> None:
    add_level(store)
    publish(store, {"c": ["three"]})
    writer = store.begin_version("b", lease=take_lease(store), run_id="late")
    with pytest.raises(GuardRefused, match="level with snapshot 1, and 2 is published"):
        writer.promote(run={})
    assert store.pointer().version == "v1"


def test_a_zombie_promotes_nothing(store: FeatureStore) -> None:
    zombie = add_level(store)
    publish(store, {"c": ["three"]})
    with pytest.raises((LeaseLost, FencedError)):
        zombie.promote(run={})
    with pytest.raises((LeaseLost, FencedError)):
        fill(zombie, {"z": ["never"]})
    assert (store.pointer().version, store.pointer().sequence) == ("v1", 2)


def test_names_are_taken_once_and_plain(store: FeatureStore) -> None:
    add(store)
    for name in ("b", "v1", "../up", ""):
        with pytest.raises(ConfigError):
            store.open_keeper(take_lease(store)).add(name, **DESCRIBED)


def test_rollback_of_snapshots_crosses_versions(store: FeatureStore) -> None:
    add_level(store).promote(run={})
    lease = take_lease(store)
    earlier = store.pointer().find_snapshot(1)
    store.begin(lease=lease, run_id="r", kind="rollback", feature_version="f1", recipe=earlier.recipe).publish_earlier(
        1, run={}
    )
    pointer = store.pointer()
    assert (pointer.version, pointer.former, pointer.dim, [kept.name for kept in pointer.versions]) == (
        "v1",
        "b",
        DIM,
        ["b"],
    )


def test_dropped_tables_go_once_nobody_can_have_them_open(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_level(store).promote(run={})
    pinned = store.open_snapshot(1)
    lease = take_lease(store)
    keeper = store.open_keeper(lease)
    with pytest.raises(NotFoundError):
        keeper.drop("b")  # the one that is served
    keeper.drop("v1")
    with pytest.raises(NotFoundError):
        store.open_snapshot(1)
    assert (store.pointer().former, [item.slot for item in store.pointer().dropped]) == ("", [""])
    assert keep_up(store, UpkeepOptions(), lease=lease, run_id="soon") is None
    assert names(pinned) == {"a", "b"}
    monkeypatch.setattr(version_upkeep, "RETAINED_AGE", timedelta(0))
    collect_garbage(store, UpkeepOptions(), lease=lease, run_id="later")
    assert not (store.root / "features.lance").exists() and not store.pointer().dropped
    assert (store.root / "source_state.lance").exists() and names(store.open_snapshot()) == {"a", "b"}
    begin(store, feature_version="f2").publish(checkpoint={}, run={})


@pytest.mark.parametrize("step", ["version.removed", "register.written"])
def test_removal_that_was_killed_is_done_by_the_next(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    add_level(store)
    store.open_keeper(take_lease(store)).drop("b")
    keeper = store.open_keeper(take_lease(store))

    def die(passed: str) -> None:
        if passed == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steps, "reach", die)
        with pytest.raises(KeyboardInterrupt):
            keeper.remove_dropped(min_age=timedelta(0))
    assert len(store.pointer().dropped) == 1
    store.open_keeper(take_lease(store)).remove_dropped(min_age=timedelta(0))
    assert not store.pointer().dropped and list_slots(store.location) == set()


def test_gc_removes_the_tables_of_a_version_that_was_never_named(store: FeatureStore) -> None:
    lease = take_lease(store)
    Table.create(store.root / "features-dead.lance", make_features({}).schema)
    options = UpkeepOptions(sweep_after=timedelta(0))
    finding = verify_store(store.location, deep=False, sweep_after=SWEEP_AFTER).findings[-1]
    assert (finding.place, finding.is_note) == ("dead", True)
    collect_garbage(store, options, lease=lease, run_id="gc")
    assert list_slots(store.location) == set()


def test_gc_merges_the_files_of_all_versions(store: FeatureStore) -> None:
    writer = add(store)
    fill(writer, {"a": ["one"]})
    fill(writer, {"b": ["two"]})
    writer.finish(is_level=True)
    done = collect_garbage(store, UpkeepOptions(), lease=take_lease(store), run_id="gc")
    assert {name.partition("-")[0] for name in done.compacted if "-" in name} == {"features", "documents"}
    assert names(store.open_snapshot(version="b")) == {"a", "b"}


def test_purge_reaches_every_version(store: FeatureStore) -> None:
    add_level(store)
    add(store, "c")
    lease = take_lease(store)
    store.open_keeper(lease).drop("c")
    plan = plan_purge(store, ["a"])
    purge_documents(store, plan, lease=lease, run_id="purge")
    assert names(store.open_snapshot()) == names(store.open_snapshot(version="b")) == {"b"}
    held = [path for path in store.root.rglob("*") if path.is_file() and b"file:///a" in path.read_bytes()]
    assert held == [] and len(list_slots(store.location)) == 1


def test_purge_finds_what_only_a_version_beside_has(store: FeatureStore) -> None:
    writer = add(store)
    fill(writer, {"old": ["gone"]})
    plan = plan_purge(store, ["old"])
    purge_documents(store, plan, lease=take_lease(store), run_id="purge")
    assert names(store.open_snapshot(version="b")) == set()
    with pytest.raises(NotFoundError):
        plan_purge(store, ["old"])


def test_verify_and_repair_know_the_versions(store: FeatureStore) -> None:
    add_level(store)
    assert not verify_store(store.location, deep=True, sweep_after=SWEEP_AFTER).drift
    slot = store.pointer().find_version("b").slot
    (path,) = (store.root / f"features-{slot}.lance" / "data").iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    found = verify_store(store.location, deep=True, sweep_after=SWEEP_AFTER)
    assert {finding.version for finding in found.drift} == {"b"}
    lease = take_lease(store)
    done = repair_store(store, found, lease=lease, run_id="repair", sweep_after=SWEEP_AFTER)
    assert (done.versions, done.left, done.sequence) == (("b",), (), 1)
    assert store.open_snapshot(version="b").count_documents() == 0 and store.open_snapshot().count_documents() == 2


def test_a_version_whose_tables_are_gone_is_told(store: FeatureStore) -> None:
    add_level(store)
    slot = store.pointer().find_version("b").slot
    for path in (store.root / f"documents-{slot}.lance" / "_versions").iterdir():
        path.unlink()
    (finding,) = verify_store(store.location, deep=False, sweep_after=SWEEP_AFTER).drift
    assert finding.kind == "version-gone" and "lodestream versions drop b" in finding.what
    with pytest.raises(StoreError):
        store.begin_version("b", lease=take_lease(store), run_id="r")
    store.open_keeper(take_lease(store)).drop("b")
    assert not verify_store(store.location, deep=False, sweep_after=SWEEP_AFTER).drift


def test_old_versions_of_the_tables_are_removed(store: FeatureStore) -> None:
    writer = add(store)
    for number in range(4):
        fill(writer, {"a": [f"{number}"]})
    writer.finish(is_level=True, max_unread=0, min_age=timedelta(0))
    assert [len(table.list_versions()) for table in writer.own_tables()] == [1, 1]
    assert names(store.open_snapshot(version="b")) == {"a"}


def test_retention_goes_on_over_a_promote(store: FeatureStore) -> None:
    lease = take_lease(store)
    store.begin(
        lease=lease, run_id="k", kind="k", feature_version="f1", recipe={}, retention=Retention(keep_snapshots=1)
    ).abandon()
    add_level(store).promote(run={})
    assert [record.version for record in store.pointer().history] == ["b"]
    assert names(store.open_snapshot(version="v1")) == {"a", "b"}
