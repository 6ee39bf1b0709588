"""The store in an object store: a real server that speaks S3, on the loopback device."""

from __future__ import annotations

import os
import pickle
import time
import uuid
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from lodestream.errors import ConfigError, NotFoundError, StoreNotFound, StoreUnreachable
from lodestream.storage import transaction as transaction_module
from lodestream.storage.location import Location
from lodestream.storage.maintenance import UpkeepOptions, collect_garbage
from lodestream.storage.purge import plan_purge, purge_documents
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.repair import repair_store
from lodestream.storage.snapshot import read_pointer
from lodestream.storage.store import FeatureStore
from lodestream.storage.verify import verify_store
from tests.support.servers import find_free_port, s3_bucket, s3_options, s3_server
from tests.support.store_rows import DIM, begin, keep_snapshots, publish, read_contents, take_lease, write
from tests.support.workspace import Workspace, assert_equal_stores, last_json, short_topics

__all__ = ["s3_bucket", "s3_options", "s3_server"]


@pytest.fixture
def location(s3_bucket: str, s3_options: dict[str, str]) -> Location:
    return Location.parse(f"s3://{s3_bucket}/deep/features ü", s3_options)


def test_writing_reading_resuming(location: Location) -> None:
    with pytest.raises(StoreNotFound):
        FeatureStore.open(location)
    store = FeatureStore.open_or_create(location, dim=DIM)
    snapshot = publish(store, {"a": ["1"], "b": ["2"]})
    write(begin(store, run_id="killed"), {"c": ["3"]})
    transaction = begin(FeatureStore.open(location))
    assert transaction.resumed
    write(transaction, {"a": ["9"]}, deleted=["b"])
    assert read_contents(store.open_snapshot()) == {"a": ["1"], "b": ["2"]}
    transaction.publish(checkpoint={}, run={})
    assert read_contents(store.open_snapshot()) == {"a": ["9"], "c": ["3"]}
    assert read_contents(pickle.loads(pickle.dumps(snapshot))) == {"a": ["1"], "b": ["2"]}


def test_old_versions_go(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "MAX_UNREAD_VERSIONS", 0)
    monkeypatch.setattr(transaction_module, "RETAINED_AGE", transaction_module.RETAINED_AGE * 0)
    store = FeatureStore.open_or_create(location, dim=DIM)
    keep_snapshots(store, 2)
    for number in range(4):
        snapshot = publish(store, {"a": [str(number)]})
    versions = snapshot.open_table("documents").list_versions()
    # The object store stamps whole seconds, so that what was made in this one may look younger than it is.
    assert store.pointer().named_versions("documents", "") <= versions.keys()
    assert len(versions) < snapshot.open_table("documents").version
    assert read_contents(store.open_snapshot(3)) == {"a": ["2"]}
    with pytest.raises(NotFoundError):
        store.open_snapshot(2)


def test_junk_of_another_writer_is_rolled_over(location: Location) -> None:
    import lance

    store = FeatureStore.open_or_create(location, dim=DIM)
    documents = publish(store, {"a": ["1"]}).open_table("documents")
    for mode in ("append", "overwrite"):
        rows = documents.read(documents.schema.names)
        lance.write_dataset(rows, documents.location.uri, mode=mode, storage_options=documents.location.lance_options)
    assert read_contents(publish(store, {"b": ["2"]})) == {"a": ["1"], "b": ["2"]}


def test_no_bucket_no_rights_no_answer(s3_options: dict[str, str], location: Location) -> None:
    missing = Location.parse(f"s3://{uuid.uuid4().hex}/x", s3_options)
    with pytest.raises(ConfigError, match="bucket"):
        FeatureStore.open_or_create(missing, dim=DIM)
    store = FeatureStore.open_or_create(location, dim=DIM)
    table = publish(store, {"a": ["1"]}).open_table("features")
    down = {"aws_endpoint": f"http://127.0.0.1:{find_free_port()}", "client_max_retries": "0"}
    gone = Location.parse(location.uri, s3_options | down)
    with pytest.raises(StoreUnreachable, match="endpoint"):
        type(table).open(gone.child("features.lance"), table.schema, version=table.version)


def test_an_endpoint_that_gives_no_answer(tmp_path: Path, location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again until patience ends; then one clear error that says to try later, in reading as in writing."""
    publish(FeatureStore.open_or_create(location, dim=DIM), {"a": ["1"]})
    port = find_free_port()
    impatient = partial(RegisterOptions, give_up_after_s=1.0)
    monkeypatch.setattr("lodestream.storage.registers.opening.RegisterOptions", impatient)
    monkeypatch.setattr("lodestream.storage.coordination.RegisterOptions", impatient)
    down = Location.parse(location.uri, {**location.options, "aws_endpoint": f"http://127.0.0.1:{port}"})
    for attempt in (FeatureStore.open, read_pointer, lambda place: FeatureStore.open_or_create(place, dim=DIM)):
        began = time.monotonic()
        with pytest.raises(StoreUnreachable, match="cannot be reached(.|\n)*same command again") as caught:
            attempt(down)
        assert time.monotonic() - began >= 0.2, "it was not asked again"
        assert caught.value.exit_code == 75


def test_end_to_end(
    tmp_path: Path, s3_bucket: str, s3_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a user types, with the endpoint in the configuration and the credentials in the environment."""
    credentials = {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": s3_options["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": s3_options["aws_secret_access_key"],
    }
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    settings = (f"store.uri=s3://{s3_bucket}/store", f"store.options.aws_endpoint={s3_options['aws_endpoint']}")
    options = [part for setting in settings for part in ("--set", setting)]
    workspace = Workspace.create(tmp_path / "work", short_topics(4), *settings)
    checked = workspace.command("check", *options)
    assert "conditional writes work" in checked.stdout, checked.stdout + checked.stderr
    first = workspace.command("run", "--json", *options)
    assert last_json(first)["documents"]["new"] == 4, first.stderr
    (workspace.docs / next(iter(short_topics(1)))).unlink()
    assert workspace.run().as_dict()["snapshot"] == {"before": 1, "after": 2}
    back = workspace.command("snapshots", "rollback", "1", "--yes", *options)
    assert back.stdout == "snapshot 2 -> 3, which is 1 again\n"
    again = workspace.run().as_dict()
    assert (again["documents"]["deleted"], again["snapshot"]) == (1, {"before": 3, "after": 4})
    hits = workspace.command("search", "operator precedence", *options)
    assert hits.returncode == 0 and hits.stdout
    assert sorted(os.listdir(workspace.root)) == ["docs", "lodestream.toml"]
    location = Location.parse(f"s3://{s3_bucket}/store", s3_options)
    assert {item.name.split("/")[0] for item in location.list_objects()} == {
        "features.lance",
        "documents.lance",
        "source_state.lance",
        "pointer.json",
        "lease.json",
    }
    workspace.run(f"store.uri={tmp_path / 'local'}")
    local = FeatureStore.open(str(tmp_path / "local"))
    assert_equal_stores(FeatureStore.open(location).open_snapshot(), local.open_snapshot())


def test_upkeep_purge_and_verify(location: Location) -> None:
    """Listing, merging, removing and repairing go through the object store as through a disk."""
    store = FeatureStore.open_or_create(location, dim=DIM)
    contents = {f"d{number}": ["alpha", str(number)] for number in range(4)}
    for doc_id, texts in contents.items():
        publish(store, {doc_id: texts, "secret": texts[1:]})
    done = collect_garbage(store, UpkeepOptions(), lease=take_lease(store), run_id="gc")
    assert done.compacted == ("features", "documents", "source_state")
    purge_documents(store, plan_purge(store, ["secret"]), lease=take_lease(store), run_id="purge")
    assert read_contents(store.open_snapshot()) == contents
    day = timedelta(days=1)
    assert verify_store(location, deep=True, sweep_after=day).findings == ()
    documents = store.open_tables()["documents"]
    path = f"data/{documents.fragments()[0].data_files()[0].path}"
    documents.location.delete_objects([path])
    found = verify_store(location, deep=True, sweep_after=day)
    assert any(finding.kind == "file-gone" and path in finding.what for finding in found.drift)
    mended = repair_store(store, found, lease=take_lease(store), run_id="repair", sweep_after=day)
    assert mended.left == ()
    assert {*mended.to_compute, *mended.dropped} == contents.keys()
    publish(store, {"d0": ["again"]})
    assert read_contents(store.open_snapshot()) == {"d0": ["again"]}
