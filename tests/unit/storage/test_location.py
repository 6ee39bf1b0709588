from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lodestream.errors import ConfigError
from lodestream.storage.location import Location


def test_local_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a b'c &=+#?%41 ü中"
    for place in (str(path), path, path.as_uri(), Location.parse(path)):
        location = Location.parse(place)
        assert (location.is_local, location.path, location.lance_options) == (True, path, None)
    monkeypatch.chdir(tmp_path)
    assert Location.parse("below/../here").path == tmp_path / "here"
    assert Location.parse(path).child("pointer").path == path / "pointer"


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket//a/b c//", "s3://bucket/a/b c"),
        ("gs://bucket/ü", "gs://bucket/ü"),
        ("az://container/x", "az://container/x"),
    ],
)
def test_remote_places(given: str, uri: str) -> None:
    location = Location.parse(given, {"aws_region": "x"})
    assert (location.uri, location.is_local, location.lance_options) == (uri, False, {"aws_region": "x"})
    assert location.child("a").uri == f"{uri}/a" and location.child("a").options == {"aws_region": "x"}
    with pytest.raises(ValueError, match="no folder"):
        _ = location.path


@pytest.mark.parametrize(
    "given", ["memory://x", "s3://", "http://host/x", "s3://bucket/a?b", "s3://bucket/a#b", "a\nb"]
)
def test_no_places(given: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.uri"):
        Location.parse(given)


def test_plain_http_is_allowed_where_the_endpoint_is() -> None:
    options = {"aws_endpoint": "http://127.0.0.1:9000"}
    assert Location.parse("s3://b", options).lance_options == options | {"allow_http": "true"}
    assert Location.parse("s3://b", {"aws_endpoint": "https://x"}).lance_options == {"aws_endpoint": "https://x"}


def test_secrets_do_not_show_and_travel(tmp_path: Path) -> None:
    location = Location.parse("s3://b/c", {"aws_secret_access_key": "hush"})
    assert "hush" not in f"{location!r} {location}"
    assert pickle.loads(pickle.dumps(location)) == location
    assert hash(location) == hash(Location.parse("s3://b/c"))


def test_listing_and_deleting(tmp_path: Path) -> None:
    location = Location.parse(tmp_path / "store")
    assert location.is_empty() and list(location.list_objects()) == []
    (tmp_path / "store" / "deep").mkdir(parents=True)
    assert location.is_empty()
    (tmp_path / "store" / "deep" / "ü").write_text("abc")
    (tmp_path / "store" / "b").write_text("")
    found = {item.name: item.size_bytes for item in location.list_objects()}
    assert found == {"deep/ü": 3, "b": 0} and not location.is_empty()
    location.delete_objects(["deep/ü", "never there"])
    assert [item.name for item in location.list_objects()] == ["b"]
