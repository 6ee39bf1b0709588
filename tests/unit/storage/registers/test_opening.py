"""From a setting to a register."""

from __future__ import annotations

import builtins
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import ConfigError, StoreUnreachable
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.registers.opening import RegisterKind, name_kind, open_register
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.remote import RemoteRegister

PATIENCE = RegisterOptions(timeout_s=0.2, give_up_after_s=0.2)

ADDRESSES: dict[RegisterKind, str] = {
    "object": "s3://bucket/store",
    "etcd": "http://127.0.0.1:1,localhost:2",
    "postgres": "postgresql://me:secret@127.0.0.1:1/db",
    "redis": "redis://me:secret@127.0.0.1:1/0",
}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("/srv/store", "local"),
        ("relative", "local"),
        ("file:///srv/store", "local"),
        ("gs://bucket/a", "object"),
        ("https://host:2379", "etcd"),
        ("postgres://host/db", "postgres"),
        ("REDISS://host", "redis"),
    ],
)
def test_address_names_its_kind(url: str, kind: str) -> None:
    assert name_kind(url) == kind


def test_unknown_address() -> None:
    with pytest.raises(ConfigError, match="ftp://"):
        open_register("auto", "ftp://host", "lease")


def test_local_register_lies_in_a_folder_of_its_name(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}"):
        register = open_register("auto", url, "lease")
        assert isinstance(register, LocalRegister) and register.folder == tmp_path / "lease"


@pytest.mark.parametrize("kind", ADDRESSES)
def test_nothing_listens(kind: RegisterKind) -> None:
    """An error of a kind that may be tried again, without the password, and it can be sent to another process."""
    storage = {"aws_endpoint": "http://127.0.0.1:1", "aws_access_key_id": "a", "aws_secret_access_key": "secret"}
    options = RegisterOptions(timeout_s=0.2, give_up_after_s=0.2, storage=storage if kind == "object" else {})
    register = open_register("auto", ADDRESSES[kind], "lease", options)
    assert isinstance(register, RemoteRegister)
    for call in (register.read, lambda: register.cas(None, {"nonce": "a"})):
        with pytest.raises(StoreUnreachable, match="tried for 0.2 s") as caught:
            call()
        assert "secret" not in str(caught.value) and "lease" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    register.close()


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("object", "s3x://bucket"),
        ("object", "http://host/bucket"),
        ("etcd", "etcd-host:2379"),
        ("etcd", "http://"),
        ("etcd", "http://host:port"),
        ("etcd", "http://host?ca=x"),
        ("postgres", "postgresql://host:port/db"),
        ("redis", "redis://host:port"),
        ("redis", "http://host"),
    ],
)
def test_wrong_address(kind: Any, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_register(kind, url, "lease", PATIENCE).read()
    assert caught.value.exit_code == 2 and caught.value.hint


@pytest.mark.parametrize(
    ("kind", "package"), [("object", "obstore"), ("etcd", "etcd3gw"), ("postgres", "psycopg"), ("redis", "redis")]
)
def test_missing_package(kind: RegisterKind, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return import_module(name, *rest, **more)

    module = {"object": "objects"}.get(kind, kind)
    monkeypatch.delitem(sys.modules, f"lodestream.storage.registers.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError) as caught:
        open_register(kind, ADDRESSES[kind], "lease")
    assert package in caught.value.message and caught.value.hint == f"pip install 'lodestream[{kind}]'"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host", "redis://:***@host"),
        ("http://me:se:cret@a,b:1", "http://me:***@a,b:1"),
        ("postgresql://me@host/db?password=secret&x=1", "postgresql://me@host/db?password=***&x=1"),
        ("postgresql://me:a/b?c#d@e@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://host/db?sslmode=require&sslpassword=secret",
            "postgresql://host/db?sslmode=require&sslpassword=***",
        ),
        ("host=a password = 'two words' user=me", "host=a password = *** user=me"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("/srv/a:b@c", "/srv/a:b@c"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert hide_password(url) == shown
