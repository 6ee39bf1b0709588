"""What is other than in the product, in the processes of a chaos run alone.

Always: old versions go after seconds instead of an hour. And for the run that shows that the harness can fail, there is
no fence: compare-and-swap forgets to compare, and nobody looks at epochs; the lease stays.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any
from unittest import mock

from lodestream.errors import CommitConflict
from lodestream.storage import snapshot, store, transaction, writer
from lodestream.storage.lease import Lease
from lodestream.storage.registers.protocol import CasRegister, Record, Version
from lodestream.storage.transaction import Transaction
from tests.fault.chaos.setup import ChaosSetup

MAX_UNREAD_VERSIONS = 8

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

    def close(self) -> None:
        self._inner.close()


def _open_unfenced(*place: Any, **options: Any) -> CasRegister:
    return UnfencedRegister(_open_fenced(*place, **options))


def prepare_process(setup: ChaosSetup) -> contextlib.ExitStack:
    """Makes this process one of the run, until the stack is closed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(transaction, "RETAINED_AGE", timedelta(seconds=setup.retained_s)))
        stack.enter_context(mock.patch.object(transaction, "MAX_UNREAD_VERSIONS", MAX_UNREAD_VERSIONS))
        if not setup.is_fenced:
            for module in (snapshot, store):
                stack.enter_context(mock.patch.object(module, "open_register", _open_unfenced))
            for owner, name in ((Transaction, "_require_newest"), (writer, "require_claim"), (Lease, "require")):
                stack.enter_context(mock.patch.object(owner, name, return_value=None))
        return stack.pop_all()  # all of it or nothing: one patch that fails takes the others back
