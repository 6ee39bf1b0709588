"""Compare-and-swap register: one small record that is read whole and replaced only by who has seen the last one.

The published pointer of a store lives in one, the lease of its writer in another. Their back-ends differ in where the
record is kept; what they promise is the same, and one test suite holds all of them to it.
"""

from __future__ import annotations

import uuid
from typing import Any, Protocol

Record = dict[str, Any]
Version = str
"""What ``read`` returned and ``cas`` wants back; opaque to callers."""


class CasRegister(Protocol):
    """One record, replaced by compare-and-swap. Every record carries a random ``nonce``, so that no two are equal."""

    def read(self) -> tuple[Record, Version] | None:
        """Return the record and its version; None if nothing was ever written.

        Raises:
            StoreUnreachable: the server gave no answer for as long as it was asked.
            StoreCorrupt: the record is torn or altered.
        """

    def cas(self, expected_version: Version | None, record: Record) -> Version:
        """Replace the record if its version is still ``expected_version`` (None: there is none yet).

        Raises:
            CommitConflict: it is another one by now; ``record`` was not accepted.
            CommitStateUnknown: it cannot be told whether ``record`` was accepted; look for its nonce.
            StoreUnreachable: the server cannot be reached; ``record`` was not accepted.
        """

    def close(self) -> None:
        """Let go of connections. The next call makes new ones."""


def make_nonce() -> str:
    """Return a random name that no other record has."""
    return uuid.uuid4().hex


def require_nonce(record: Record) -> None:
    """Refuse a record that could equal an earlier one."""
    if not record.get("nonce"):
        raise ValueError("a record needs a random nonce")
