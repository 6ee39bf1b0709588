"""How long a register in a server tries, whatever the server is."""

from __future__ import annotations

import random
import time

import pytest

from lodestream.errors import StoreUnreachable
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import Version
from lodestream.storage.registers.remote import RemoteRegister, Unreachable

PATIENCE_S = 1.0


class Outage:
    """A server that gives no answer for ``seconds``, then has no record."""

    place = "a server"

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.calls = 0

    def fetch(self) -> tuple[bytes, Version] | None:
        self.calls += 1
        if time.monotonic() < self._ends:
            raise Unreachable("no answer", was_sent=False)
        return None

    def replace(self, expected_version: Version | None, body: bytes) -> Version | None:
        raise NotImplementedError

    def remove(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(autouse=True)
def _longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls at 0, .05, .15, .35 and .75 s; then a pause that is longer than the patience left."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)


def test_an_outage_that_ends_before_patience_does_is_waited_for() -> None:
    server = Outage(0.85 * PATIENCE_S)
    register = RemoteRegister(server, RegisterOptions(give_up_after_s=PATIENCE_S))
    assert register.read() is None
    assert server.calls > 1


def test_gives_up_when_patience_ends() -> None:
    register = RemoteRegister(Outage(60), RegisterOptions(give_up_after_s=PATIENCE_S))
    began = time.monotonic()
    with pytest.raises(StoreUnreachable, match="tried for 1 s"):
        register.read()
    assert time.monotonic() - began >= PATIENCE_S
