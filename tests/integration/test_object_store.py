"""The store in an object store: a real server that speaks S3, on the loopback device."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path

import pytest

from lodestream.errors import ConfigError, NotFoundError, StoreNotFound, StoreUnreachable
from lodestream.storage import transaction as transaction_module
from lodestream.storage.location import Location
from lodestream.storage.snapshot import read_pointer
from lodestream.storage.store import FeatureStore
from tests.support.servers import find_free_port, s3_bucket, s3_options, s3_server
from tests.support.store_rows import DIM, begin, keep_snapshots, publish, read_contents, write
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
    assert store.pointer().named_versions("documents") <= versions.keys()
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


def test_end_to_end(tmp_path: Path, s3_bucket: str, s3_options: dict[str, str]) -> None:
    """What a user types, with the endpoint in the configuration and the credentials in the environment."""
    workspace = Workspace.create(tmp_path / "work", short_topics(4))
    environ = {
        "LODESTREAM__STORE__URI": f"s3://{s3_bucket}/store",
        "LODESTREAM__STORE__OPTIONS__AWS_ENDPOINT": s3_options["aws_endpoint"],
        "LODESTREAM__RUN__EXECUTOR": "local",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
    }
    checked = workspace.command("check", environ=environ)
    assert "conditional writes work" in checked.stdout, checked.stdout + checked.stderr
    assert last_json(workspace.command("run", "--json", environ=environ))["documents"]["new"] == 4
    (workspace.docs / next(iter(short_topics(1)))).unlink()
    done = last_json(workspace.command("refresh", "--json", environ=environ))
    assert (done["documents"]["deleted"], done["snapshot"]) == (1, {"before": 1, "after": 2})
    hits = workspace.command("search", "operator precedence", environ=environ)
    assert hits.returncode == 0 and hits.stdout
    local = workspace.command("run", "--json", environ=environ | {"LODESTREAM__STORE__URI": str(tmp_path / "local")})
    assert local.returncode == 0
    location = Location.parse(f"s3://{s3_bucket}/store", s3_options)
    assert not {item.name.split("/")[0] for item in location.list_objects()} - {
        "features.lance",
        "documents.lance",
        "source_state.lance",
        "pointer.json",
    }
    assert sorted(os.listdir(workspace.root)) == ["docs", "lodestream.toml"]
    assert read_pointer(location)[0].sequence == 2
    assert_equal_stores(
        FeatureStore.open(location).open_snapshot(), FeatureStore.open(str(tmp_path / "local")).open_snapshot()
    )
