"""The stores that chaos is let loose on: one per register back-end, each with its real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lodestream.storage.location import Location
from lodestream.storage.registers.opening import RegisterKind
from tests.support.servers import Server, describe_s3, make_bucket


def make_location(kind: RegisterKind, folder: Path, start: Callable[[str], Server]) -> Location:
    """A store that is not there yet, of which pointer and lease are kept in ``kind`` (of Redis: the lease alone).

    Args:
        kind: for ``object``, the data lies there too; for all others it lies in ``folder``.
        folder: of this machine.
        start: returns the server of a name such as ``redis``, and starts it if need be.
    """
    if kind == "object":
        server = start("s3")
        return Location.parse(f"s3://{make_bucket(server)}/store", describe_s3(server))
    server_url = None if kind == "local" else start(kind).url
    return Location.parse(folder / "store", server=server_url)
