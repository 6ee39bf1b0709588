"""Where a store's pointer and its writer's lease are kept.

Both lie with the data, unless a server is named for them (``lease.url``): then etcd, PostgreSQL, another folder or
another object store keeps both, and the place of the data keeps a small marker that says so. Redis keeps the lease
alone, for it may forget; the pointer stays with the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Final

from lodestream.errors import ConfigError, StoreCorrupt, StoreNotFound
from lodestream.storage.durability import make_folder, sync_path
from lodestream.storage.failures import explain_errors
from lodestream.storage.location import Location
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.registers.opening import open_register as open_kind
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import CasRegister

MARKER_NAME: Final = "coordination.json"
POINTER_NAME: Final = "pointer"
LEASE_NAME: Final = "lease"


def open_pointer(location: Location, *, create: bool = False) -> CasRegister:
    """Return the register that holds the pointer of the store at ``location``.

    Args:
        location: the store.
        create: whether to choose a name in a named server where the store has none yet.

    Raises:
        StoreNotFound: the pointer is to be kept in a server, and no store was made that way at ``location``.
        ConfigError: the store was made another way.
    """
    if not location.keeps_pointer_elsewhere:
        return open_beside(location, POINTER_NAME)
    marker = _read_marker(location)
    name = marker["name"] if marker else ""
    if not name:
        if open_beside(location, POINTER_NAME).read() is not None:
            raise ConfigError(
                f"the pointer of the store at {location} is kept with its data, not in {_show_server(location)}",
                'set lease.backend = "auto" and no lease.url',
            )
        if not create:
            raise _not_found(location)
        name = _write_marker(location)
    return _open_elsewhere(location, f"{name}/{POINTER_NAME}", RegisterOptions(storage=location.options))


def open_lease(location: Location, *, ttl_s: float) -> CasRegister:
    """Return the register that holds the lease of the store at ``location``, with patience for a third of ``ttl_s``.

    Raises:
        StoreNotFound, ConfigError: see open_pointer.
    """
    options = RegisterOptions(timeout_s=ttl_s / 3, give_up_after_s=ttl_s / 3, storage=location.options)
    if location.server is None:
        return open_beside(location, LEASE_NAME, options)
    if not location.keeps_pointer_elsewhere:
        return _open_elsewhere(location, f"{location.uri}/{LEASE_NAME}", options)
    marker = _read_marker(location)
    if marker is None:
        raise _not_found(location)
    return _open_elsewhere(location, f"{marker['name']}/{LEASE_NAME}", options)


def require_no_marker(location: Location) -> None:
    """Refuse a store whose pointer is not with its data, although no server is named.

    Raises:
        ConfigError: it is in a server.
    """
    marker = None if location.keeps_pointer_elsewhere else _read_marker(location)
    if marker is not None:
        raise ConfigError(
            f"the pointer of the store at {location} is kept in {marker['server']}",
            "set lease.url, or the variable LODESTREAM__LEASE__URL, to that server's address with its credentials",
        )


def _not_found(location: Location) -> StoreNotFound:
    return StoreNotFound(f"there is no store at {location}: nothing has been written there yet", "lodestream run")


def open_beside(location: Location, name: str, options: RegisterOptions | None = None) -> CasRegister:
    """Return the register ``name`` that lies with the data of the store at ``location``.

    Raises:
        ConfigError: the place or an option is not known to obstore.
    """
    if location.is_local:
        return LocalRegister(location.path / name)
    return open_kind("object", location.uri, name, options or RegisterOptions(storage=location.options))


def _open_elsewhere(location: Location, name: str, options: RegisterOptions) -> CasRegister:
    assert location.server is not None
    return open_kind("auto", location.server, name, options)


def _show_server(location: Location) -> str:
    return hide_password(location.server or "")


def _read_marker(location: Location) -> dict[str, str] | None:
    """Return ``name`` of the store in its server, and ``server`` without its password; None if there is no marker."""
    content = _read_object(location, MARKER_NAME)
    if content is None:
        return None
    try:
        values = json.loads(content)
        return {"name": str(values["name"]), "server": str(values["server"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{location}/{MARKER_NAME} is torn or altered ({error!r})", "restore it from a backup"
        ) from error


def _write_marker(location: Location) -> str:
    content = json.dumps({"server": _show_server(location), "name": uuid.uuid4().hex}, indent=1).encode()
    with explain_errors(location):
        if location.is_local:
            _create_file(location.path / MARKER_NAME, content)
        else:
            _create_object(location, content)
    marker = _read_marker(location)  # of two that create at once both take the first one's
    assert marker is not None
    return marker["name"]


def _create_file(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        sync_path(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def _create_object(location: Location, content: bytes) -> None:
    import obstore
    from obstore.exceptions import AlreadyExistsError, NotSupportedError

    store = location.open_objects()
    try:
        obstore.put(store, MARKER_NAME, content, mode="create")
    except AlreadyExistsError:
        return
    except NotSupportedError:  # no conditional writes: why the pointer is in a server
        obstore.put(store, MARKER_NAME, content)


def _read_object(location: Location, name: str) -> bytes | None:
    with explain_errors(location):
        if location.is_local:
            try:
                return (location.path / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            return bytes(obstore.get(location.open_objects(), name).bytes())
        except (NotFoundError, FileNotFoundError) as error:  # obstore raises either
            if "NoSuchBucket" in str(error):
                raise
            return None
