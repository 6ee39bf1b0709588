"""From a setting to a register: which back-end it names, and what must be installed for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from lodestream.errors import ConfigError
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import CasRegister

if TYPE_CHECKING:
    from lodestream.storage.registers.remote import Backend

RegisterKind = Literal["local", "object", "etcd", "postgres", "redis"]

_KIND_OF_SCHEME: Final[dict[str, RegisterKind]] = {
    "": "local",
    "file": "local",
    "s3": "object",
    "s3a": "object",
    "gs": "object",
    "az": "object",
    "abfs": "object",
    "abfss": "object",
    "http": "etcd",
    "https": "etcd",
    "postgresql": "postgres",
    "postgres": "postgres",
    "redis": "redis",
    "rediss": "redis",
}

_EXAMPLES: Final[dict[str, str]] = {
    "local": "give a folder, such as /srv/lodestream",
    "object": "give an address such as s3://bucket/folder, gs://bucket/folder or az://container/folder",
    "etcd": "give an address such as http://host:2379",
    "postgres": "give an address such as postgresql://user@host:5432/database",
    "redis": "give an address such as redis://host:6379/0",
}


def name_kind(url: str) -> RegisterKind:
    """Return the back-end that ``url`` speaks of: a path is local, ``s3://`` an object store, and so on.

    Raises:
        ConfigError: none does.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in _KIND_OF_SCHEME:
        raise ConfigError(
            f"no register is known for {scheme}://", f"use a path, or one of: {', '.join(sorted(_KIND_OF_SCHEME))[2:]}"
        )
    return _KIND_OF_SCHEME[scheme]


def open_register(
    kind: RegisterKind | Literal["auto"], url: str, name: str, options: RegisterOptions | None = None
) -> CasRegister:
    """Open the register ``name`` at ``url``. Nothing is contacted before the first call.

    Args:
        kind: the back-end; "auto" takes the one that ``url`` speaks of.
        url: a folder, or the address of the server, with user and password where it wants them.
        name: what the record is of: different names are different registers, in a server shared by many stores.
        options: patience, and the options of an object store.

    Raises:
        ConfigError: the address is none of that kind, or a package is missing.
    """
    chosen = name_kind(url)
    if kind not in ("auto", chosen):
        raise ConfigError(f"{hide_password(url)} is no address of a register of kind {kind}", _EXAMPLES.get(kind, ""))
    if chosen == "local":
        return LocalRegister(Path(url.removeprefix("file://")) / name)
    return _open_remote(chosen, url, name, options or RegisterOptions())


def _open_remote(kind: RegisterKind, url: str, name: str, options: RegisterOptions) -> CasRegister:
    try:
        connect = _import_back_end(kind)
        from lodestream.storage.registers.remote import RemoteRegister
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a register in {url.partition('://')[0]}:// needs the package {error.name}, which is not installed",
            f"pip install 'lodestream[{kind}]'",
        ) from error
    return RemoteRegister(connect(url, name, options), options)


def _import_back_end(kind: RegisterKind) -> Callable[..., Backend]:
    if kind == "object":
        from lodestream.storage.registers.objects import connect_object

        return connect_object
    if kind == "etcd":
        from lodestream.storage.registers.etcd import EtcdBackend

        return EtcdBackend
    if kind == "postgres":
        from lodestream.storage.registers.postgres import PostgresBackend

        return PostgresBackend
    from lodestream.storage.registers.redis import RedisBackend

    return RedisBackend
