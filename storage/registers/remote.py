"""A register in a server: one retry rule, and one way to settle a swap whose reply was lost, for every back-end.

A back-end speaks one protocol and knows two calls, ``fetch`` and ``replace``. What is hard is the same for all of them:
the request that was carried out although no answer came. Such a swap is in doubt. It is settled by reading the record
again: mine (the nonce tells), or still the one it should replace (then it is sent again, and only one of the two
requests can succeed), or a third one (then nobody can tell any more, and the caller hears so).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import tenacity

from lodestream.errors import CommitConflict, CommitStateUnknown, StoreUnreachable
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import Record, Version, require_nonce
from lodestream.storage.registers.seal import seal, unseal

FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 2.0

Result = TypeVar("Result")


class Unreachable(Exception):
    """A back-end got no answer.

    ``was_sent``: whether the request may have been carried out all the same.
    """

    def __init__(self, reason: str, *, was_sent: bool = True) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class Backend(Protocol):
    """One body of bytes in a server, replaced by compare-and-swap. Safe for use by many threads."""

    place: str
    """Where the body is, for messages; without passwords."""

    def fetch(self) -> tuple[bytes, Version] | None:
        """Return the body and its version; None if there is none.

        Raises:
            Unreachable: no answer.
            StoreUnwritable, ConfigError: an answer that no later call can change.
        """

    def replace(self, expected_version: Version | None, body: bytes) -> Version | None:
        """Replace the body if its version is ``expected_version`` (None: there is none yet).

        Returns:
            The new version; None if the server refused. A refusal may be a mere collision with another request.

        Raises:
            Unreachable, StoreUnwritable, ConfigError: as ``fetch``.
        """

    def remove(self) -> None:
        """Remove the body; one that is not there is no error.

        Raises:
            Unreachable, StoreUnwritable, ConfigError: as ``fetch``.
        """

    def close(self) -> None:
        """Let go of connections. The next call makes new ones."""


@dataclass(slots=True)
class _Doubt:
    exists: bool = False


class RemoteRegister:
    """The register in ``backend``. See CasRegister for what it promises.

    Calls that get no answer are made again with growing pauses for ``options.give_up_after_s`` seconds. Safe for use by
    many threads; not across a fork.
    """

    def __init__(self, backend: Backend, options: RegisterOptions | None = None) -> None:
        self._backend = backend
        self._options = options or RegisterOptions()

    @property
    def place(self) -> str:
        """Where the record is, for messages."""
        return self._backend.place

    def read(self) -> tuple[Record, Version] | None:
        """Return the record and its version; None if nothing was ever written. See CasRegister."""
        try:
            return self._persist(self._fetch)
        except Unreachable as error:
            raise self._explain(error) from error

    def cas(self, expected_version: Version | None, record: Record) -> Version:
        """Replace the record if its version is still ``expected_version``. See CasRegister."""
        require_nonce(record)
        body, doubt = seal(record), _Doubt()
        try:
            return self._persist(lambda: self._attempt(expected_version, record["nonce"], body, doubt))
        except Unreachable as error:
            if doubt.exists:
                raise self._doubt(str(error)) from error
            raise self._explain(error) from error

    def remove(self) -> None:
        """Remove the record, whoever wrote it: for registers that were made to try something out.

        Raises:
            StoreUnreachable: the server gives no answer.
        """
        try:
            self._persist(self._backend.remove)
        except Unreachable as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Let go of connections. The next call makes new ones."""
        self._backend.close()

    def _fetch(self) -> tuple[Record, Version] | None:
        found = self._backend.fetch()
        if found is None:
            return None
        hint = "lodestream verify, to see what is published; then restore the record from a backup"
        return unseal(found[0], place=self.place, hint=hint), found[1]

    def _attempt(self, expected: Version | None, nonce: str, body: bytes, doubt: _Doubt) -> Version:
        if doubt.exists and (settled := self._settle(expected, nonce, doubt)) is not None:
            return settled
        try:
            version = self._backend.replace(expected, body)
        except Unreachable as error:
            doubt.exists = doubt.exists or error.was_sent
            raise
        if version is None:
            version = self._settle(expected, nonce, doubt)
        if version is None:
            raise Unreachable("it refuses, although the record is the expected one", was_sent=False)
        return version

    def _settle(self, expected: Version | None, nonce: str, doubt: _Doubt) -> Version | None:
        """The version if the record is mine; None if the swap may be tried (again)."""
        found = self._fetch()
        if found is not None and found[0].get("nonce") == nonce:
            return found[1]
        seen = None if found is None else found[1]
        if seen == expected:
            return None
        if doubt.exists:
            raise self._doubt("the record was replaced before the lost answer could be looked up")
        raise CommitConflict(
            f"another writer changed the store: {self.place} is at version {seen or 'none'}, not {expected or 'none'}",
            "wait for the other run to end, then run the same command again",
        )

    def _persist(self, call: Callable[[], Result]) -> Result:
        patience_s = self._options.give_up_after_s
        backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)

        def pause(state: tenacity.RetryCallState) -> float:
            """Seconds to the next call; a long pause is cut, so that the last call is made when patience ends."""
            return min(backoff(state), max(patience_s - (state.seconds_since_start or 0.0), 0.0))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unreachable),
            wait=pause,
            stop=tenacity.stop_after_delay(patience_s),
            sleep=time.sleep,
            reraise=True,
        )
        return retrying(call)

    def _explain(self, error: Unreachable) -> StoreUnreachable:
        return StoreUnreachable(
            f"{self.place} cannot be reached ({error}); tried for {self._options.give_up_after_s:g} s",
            "look whether the server runs and can be reached from here, then run the same command again",
        )

    def _doubt(self, reason: str) -> CommitStateUnknown:
        return CommitStateUnknown(
            f"the answer of {self.place} was lost ({reason}): the change may have been accepted",
            "lodestream status, to see whether your run is in it; then run the same command again",
        )
