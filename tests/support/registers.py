"""The register back-ends as tests use them: each with its real server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from lodestream.storage.registers.opening import RegisterKind, open_register
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import CasRegister
from tests.support.servers import Server, describe_s3, make_bucket

REMOTE_KINDS: tuple[RegisterKind, ...] = ("object", "etcd", "postgres", "redis")
KINDS: tuple[RegisterKind, ...] = ("local", *REMOTE_KINDS)

WRITE_MARKS: dict[RegisterKind, bytes] = {
    "object": b"PUT /",
    "etcd": b"/kv/txn",
    "postgres": b"update lodestream_registers",
    "redis": b"EVAL",
}
"""What the request of a swap contains."""


@dataclass(frozen=True, kw_only=True)
class RegisterPlace:
    """An empty register of a back-end; picklable, so that other processes can open it."""

    kind: RegisterKind
    url: str
    name: str
    storage: dict[str, str] = field(default_factory=dict)

    def open(self, *, timeout_s: float = 10.0, give_up_after_s: float = 30.0) -> CasRegister:
        """Opens the register."""
        options = RegisterOptions(timeout_s=timeout_s, give_up_after_s=give_up_after_s, storage=self.storage)
        return open_register(self.kind, self.url, self.name, options)

    def through(self, port: int) -> RegisterPlace:
        """The same register behind another port."""
        moved = {key: change_port(value, port) if "endpoint" in key else value for key, value in self.storage.items()}
        url = self.url if self.kind == "object" else change_port(self.url, port)
        return RegisterPlace(kind=self.kind, url=url, name=self.name, storage=moved)


def make_place(kind: RegisterKind, folder: str, start: Callable[[str], Server]) -> RegisterPlace:
    """An empty register; ``start`` returns the server of a name such as ``redis``."""
    name = f"register-{uuid.uuid4().hex[:8]}"
    if kind == "local":
        return RegisterPlace(kind=kind, url=folder, name=name)
    if kind == "object":
        server = start("s3")
        return RegisterPlace(
            kind=kind, url=f"s3://{make_bucket(server)}/some/store", name=name, storage=describe_s3(server)
        )
    return RegisterPlace(kind=kind, url=start(kind).url, name=name)


def find_server(request: pytest.FixtureRequest, name: str) -> Server:
    """The session's server of that name."""
    server: Server = request.getfixturevalue(f"{name}_server")
    return server


def change_port(url: str, port: int) -> str:
    """``url`` with another port."""
    head, _, tail = url.rpartition(":")
    path = "/" + tail.partition("/")[2] if "/" in tail else ""
    return f"{head}:{port}{path}"
