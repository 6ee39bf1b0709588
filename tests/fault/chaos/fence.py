"""What a store would be without its fence: for the run that shows that the harness can fail.

The product has no such switch. Here, in the processes of one run, compare-and-swap forgets to compare, and nobody looks
at epochs; the lease stays.
"""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

from lodestream.errors import CommitConflict
from lodestream.storage import snapshot, store
from lodestream.storage.lease import Lease
from lodestream.storage.registers.protocol import CasRegister, Record, Version
from lodestream.storage.transaction import Transaction
from tests.fault.chaos.setup import ChaosSetup

_open_fenced = snapshot.open_register


class UnfencedRegister:
    """A register that replaces whatever is there."""

    def __init__(self, inner: CasRegister) -> None:
        self._inner = inner

    def read(self) -> tuple[Record, Version] | None:
        return self._inner.read()

    def cas(self, expected_version: Version | None, record: Record) -> Version:
        while True:
            found = self._inner.read()
            try:
                return self._inner.cas(found[1] if found else None, record)
            except CommitConflict:
                continue


def _open_unfenced(*place: Any, **options: Any) -> CasRegister:
    return UnfencedRegister(_open_fenced(*place, **options))


def set_fence(setup: ChaosSetup) -> contextlib.ExitStack:
    """Takes the fence away in this process, until the stack is closed, if ``setup`` says so."""
    stack = contextlib.ExitStack()
    if not setup.is_fenced:
        for module in (snapshot, store):
            stack.enter_context(mock.patch.object(module, "open_register", _open_unfenced))
        for owner, name in ((Transaction, "_require_newest"), (Transaction, "_require_claim"), (Lease, "require")):
            stack.enter_context(mock.patch.object(owner, name, return_value=None))
    return stack
