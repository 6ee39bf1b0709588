"""Objects in a bucket as a source, against a server that speaks S3."""

from __future__ import annotations

import pickle
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from lodestream.errors import ConfigError, SourceContract, SourceUnavailable
from lodestream.pipeline.config.sources import ObjectsSource
from lodestream.pipeline.sources.objects import ObjectsPrefix
from tests.support.known import Follower


@pytest.fixture
def bucket(s3_bucket: str, s3_options: dict[str, str]) -> S3Store:
    options: Any = {name: value for name, value in s3_options.items() if name != "allow_http"}
    store = S3Store(s3_bucket, config=options, client_options={"allow_http": True})
    for name, body in {
        "in/a.md": b"# A",
        "in/deep/b.html": b"<p>caf\xc3\xa9",
        "in/c.bin": b"x",
        "out/d.md": b"d",
    }.items():
        obstore.put(store, name, body)
    return store


def open_prefix(uri: str, options: dict[str, str], *, prefix_ids: bool = False, **settings: Any) -> ObjectsPrefix:
    config = ObjectsSource.model_validate({"kind": "objects", "uri": uri, "options": options, **settings})
    return ObjectsPrefix("s3", config, prefix_ids=prefix_ids)


def test_follows_puts_and_deletes(bucket: S3Store, s3_bucket: str, s3_options: dict[str, str]) -> None:
    follower = Follower(open_prefix(f"s3://{s3_bucket}/in", s3_options))
    follower.refresh()
    assert follower.texts == {"a.md": "# A", "deep/b.html": "café\n"}
    assert not follower.refresh().upserts
    obstore.put(bucket, "in/a.md", b"# A")
    assert not follower.refresh().upserts, "the same bytes have the same e-tag"
    obstore.put(bucket, "in/a.md", b"# B")
    obstore.put(bucket, "in/latin.txt", b"caf\xe9")
    obstore.delete(bucket, "in/deep/b.html")
    follower.refresh()
    assert follower.texts == {"a.md": "# B"}
    assert "set sources.s3.encoding" in follower.failures["latin.txt"]


def test_what_changed_since_it_was_listed_is_read_as_it_is_now(
    bucket: S3Store, s3_bucket: str, s3_options: dict[str, str]
) -> None:
    source = open_prefix(f"s3://{s3_bucket}/in", s3_options, prefix_ids=True)
    follower = Follower(source)
    candidates = source.changes(None, follower.known).upserts
    obstore.put(bucket, "in/a.md", b"# newer")
    obstore.delete(bucket, "in/deep/b.html")
    reader = pickle.loads(pickle.dumps(source.reader()))
    newer, gone = reader.read(candidates)
    assert newer.text == "# newer" and newer.state != candidates[0].state
    assert gone.is_gone
    follower.refresh()
    assert follower.texts == {"s3/a.md": "# newer"} and not follower.refresh().upserts


def test_a_large_object_is_not_fetched(bucket: S3Store, s3_bucket: str, s3_options: dict[str, str]) -> None:
    obstore.put(bucket, "in/large.md", b"x" * 2000)
    follower = Follower(open_prefix(f"s3://{s3_bucket}/in", s3_options, max_document_bytes="1kB"))
    follower.refresh()
    assert "raise sources.s3.max_document_bytes" in follower.failures["large.md"]
    assert "a.md" in follower.texts


def test_an_empty_listing_is_a_listing(s3_bucket: str, s3_options: dict[str, str]) -> None:
    source = open_prefix(f"s3://{s3_bucket}/none", s3_options)
    assert source.changes(None, Follower(source).known).listed == frozenset()
    assert source.check().level == "warn"


def test_what_is_wrong_is_said(s3_bucket: str, s3_options: dict[str, str]) -> None:
    missing = open_prefix("s3://no-such-bucket-at-all/in", s3_options)
    with pytest.raises(SourceContract, match="correct sources.s3.uri"):
        missing.check()
    with pytest.raises(ConfigError, match='kind = "files"'):
        open_prefix("folder", {})
    with pytest.raises(ConfigError, match="sources.s3.uri cannot be http://x"):
        open_prefix("http://x", {})
    nobody = open_prefix(f"s3://{s3_bucket}/in", {**s3_options, "aws_endpoint": "http://127.0.0.1:1"})
    with pytest.raises(SourceUnavailable, match="nothing was deleted"):
        nobody.changes({}, Follower(nobody).known)
