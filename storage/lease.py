"""The lease: which of several writers may write, so that two of them do not do the same work.

It is there for efficiency and order. Safety does not rest on it: the epoch that comes with it is the fencing token, and
the published pointer refuses a smaller one than it has seen.

No wall clock is compared. Whoever finds the lease held watches its record: if the holder's ``beat`` moves, the holder
is alive; if nothing moves for one TTL of the watcher's own monotonic clock, it is taken for dead.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import TracebackType
from typing import Any, Final, Self

from lodestream.errors import (
    CommitConflict,
    CommitStateUnknown,
    LeaseHeld,
    LeaseLost,
    LodestreamError,
    NotFoundError,
    StoreCorrupt,
)
from lodestream.storage.registers.protocol import CasRegister, Record, Version, make_nonce

DEFAULT_TTL_S: Final = 15.0

_BEATS_PER_TTL: Final = 3
_LOOKS_PER_TTL: Final = 12
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What the register holds.

    ``holder``    who has it, for people
    ``epoch``     goes up by at least 1 at each change of holder, and never down
    ``beat``      goes up by 1 whenever the holder says that it is alive
    ``released``  whether the holder has given it back
    ``ttl_s``     how long without a beat the holder wants to be taken for alive
    """

    holder: str
    epoch: int
    beat: int
    released: bool
    ttl_s: float
    nonce: str

    @property
    def held_s(self) -> float:
        """About how long the holder has had it."""
        return self.beat * self.ttl_s / _BEATS_PER_TTL

    def follow(self, **changes: Any) -> LeaseRecord:
        """Return the record after this one: ``changes`` applied, and a fresh nonce."""
        return replace(self, nonce=make_nonce(), **changes)

    def to_json(self) -> Record:
        """Return the record as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LeaseRecord:
        """Read what ``to_json`` wrote; unknown fields are left out.

        Raises:
            StoreCorrupt: a field is missing.
        """
        try:
            return cls(**{item.name: values[item.name] for item in fields(cls)})
        except KeyError as error:
            raise StoreCorrupt(
                f"the lease cannot be read: {error!r}", "look for another program that writes to the store's lease"
            ) from error


class Lease:
    """The right to write to a store, from ``acquire`` to ``release``; as a context it also keeps itself alive.

    Guarantees: of any number of contenders one gets it; each holder's epoch is greater than those of all before; a dead
    holder is followed after one TTL, a live one never, whatever clocks do; a lease that was lost is never taken back by
    its heartbeat. Safe for use by many threads.

    Not guaranteed: that a holder which was stopped knows in time that it has lost the lease. What it writes then is
    refused by the pointer.

    >>> import tempfile; from pathlib import Path; from lodestream.storage.registers.local import LocalRegister
    >>> with Lease(LocalRegister(Path(tempfile.mkdtemp())), holder="me", place="here") as lease:
    ...     lease.epoch, lease.lost.is_set()
    (1, False)
    """

    def __init__(
        self,
        register: CasRegister,
        *,
        holder: str,
        place: str,
        ttl_s: float = DEFAULT_TTL_S,
        floor: Callable[[], int] = lambda: 0,
        show_wait: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare to ask for the lease.

        Args:
            register: holds the record.
            holder: who asks, for people.
            place: the store, for messages.
            ttl_s: without a sign of life for so long a holder is taken for dead.
            floor: the pointer's epoch: a register that was wiped must not give out an epoch that has been used.
            show_wait: called with a sentence when a holder has to be watched.
            clock: monotonic, in seconds.
            sleep: waits so many seconds.

        ``token`` names this tenure: epochs that are equal belong to the same one only if their tokens are.
        """
        self.lost = threading.Event()
        self._register = register
        self._holder = holder
        self._place = place
        self._ttl_s = ttl_s
        self._floor = floor
        self._show_wait = show_wait
        self._clock = clock
        self._sleep = sleep
        self._held: tuple[LeaseRecord, Version] | None = None
        self._sent_nonce = ""
        self.token = ""
        self._heard_at = 0.0
        self._reason = ""
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def epoch(self) -> int:
        """The fencing token that came with the lease."""
        if self._held is None:
            raise ValueError("the lease is not held")
        return self._held[0].epoch

    def acquire(self) -> int:
        """Get the lease, and return its epoch. A holder that seems dead is watched for one TTL first.

        Raises:
            LeaseHeld: somebody else has it and is alive, or was faster.
            StoreUnreachable: its register gives no answer.
        """
        found = read_lease(self._register)
        if found is not None and not found[0].released:
            found = self._watch(*found)
        highest = max(self._floor(), 0 if found is None else found[0].epoch)
        record = LeaseRecord(
            holder=self._holder, epoch=highest + 1, beat=0, released=False, ttl_s=self._ttl_s, nonce=make_nonce()
        )
        asked_at = self._clock()
        try:
            version = self._register.cas(None if found is None else found[1], record.to_json())
        except (CommitConflict, CommitStateUnknown) as error:
            rival = read_lease(self._register)
            if rival is None:
                raise
            if rival[0].nonce != record.nonce:
                raise self._refuse(rival[0]) from error
            version = rival[1]
        self._held, self._heard_at = (record, version), asked_at
        self.token = self._sent_nonce = record.nonce
        return record.epoch

    def renew(self) -> None:
        """Say that the holder is alive. If somebody else has the lease by now, ``lost`` is set."""
        with self._lock:
            if self._held is None or self.lost.is_set():
                return
            record = self._held[0].follow(beat=self._held[0].beat + 1)
            asked_at = self._clock()
            try:
                version = self._swap(record)
            except (CommitConflict, CommitStateUnknown) as error:
                self._lose(error.message)
            except (LodestreamError, OSError) as error:
                reason = error.message if isinstance(error, LodestreamError) else str(error)
                _LOG.warning("the lease of %s could not be renewed: %s", self._place, reason)
                if self._clock() - self._heard_at >= self._ttl_s:
                    self._lose(reason)
            else:
                self._held, self._heard_at = (record, version), asked_at

    def require(self) -> None:
        """Make sure that the lease is still held. One that was not renewed for a TTL (the process was stopped) is
        renewed now.

        Raises:
            LeaseLost: somebody else has it, or its register was out of reach for a TTL.
        """
        if self._clock() - self._heard_at >= self._ttl_s:
            self.renew()
        if self._held is None or self.lost.is_set():
            raise LeaseLost(
                f"the lease of {self._place} was lost: {self._reason or 'it is not held'}",
                "let the other run end, then run the same command again; it continues from what this one had staged",
            )

    def release(self) -> None:
        """Give the lease back, so that the next one need not wait. A lease that was lost is left to its new holder."""
        with self._lock:
            if self._held is None:
                return
            if not self.lost.is_set():
                try:
                    self._swap(self._held[0].follow(released=True))
                except (LodestreamError, OSError) as error:  # it runs out by itself
                    reason = error.message if isinstance(error, LodestreamError) else str(error)
                    _LOG.warning("the lease of %s could not be given back: %s", self._place, reason)
            self._held = None

    def __enter__(self) -> Self:
        if self._held is None:
            self.acquire()
        self._ends.clear()
        self._thread = threading.Thread(target=self._beat, name="lodestream-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
        self.release()

    def _beat(self) -> None:
        while not self._ends.wait(self._ttl_s / _BEATS_PER_TTL) and not self.lost.is_set():
            self.renew()

    def _swap(self, record: LeaseRecord) -> Version:
        """Replace the record that is held; one whose reply had been lost is found again by its nonce."""
        assert self._held is not None
        sent_before, self._sent_nonce = self._sent_nonce, record.nonce
        try:
            return self._register.cas(self._held[1], record.to_json())
        except (CommitConflict, CommitStateUnknown):
            found = read_lease(self._register)
            if found is None:
                raise
            if found[0].nonce == record.nonce:
                return found[1]
            if found[0].nonce != sent_before:
                raise
        return self._register.cas(found[1], record.to_json())

    def _watch(self, record: LeaseRecord, version: Version) -> tuple[LeaseRecord, Version] | None:
        """Return the record that may be followed: given back, or unchanged for a whole TTL."""
        patience_s = max(self._ttl_s, record.ttl_s)
        pause_s = patience_s / _LOOKS_PER_TTL
        self._show_wait(f"{record.holder} has the lease; waiting up to {patience_s:g} s to see whether it is alive")
        found: tuple[LeaseRecord, Version] | None = (record, version)
        watched_s, looked_at = 0.0, self._clock()
        while watched_s < patience_s - pause_s / 2:
            self._sleep(pause_s)
            now = self._clock()
            # Each look counts for one pause at most: when the clock jumps, or this process was stopped, nobody knows
            # whether the holder had had the time to beat.
            watched_s += min(max(now - looked_at, 0.0), pause_s)
            looked_at = now
            found = read_lease(self._register)
            if found is None or found[0].released:
                return found
            if found[0].nonce != record.nonce:
                raise self._refuse(found[0])
        return found

    def _refuse(self, record: LeaseRecord) -> LeaseHeld:
        return LeaseHeld(
            f"{record.holder} is writing to {self._place} (epoch {record.epoch}, since about {record.held_s:.0f} s)",
            f"run the same command again when it has ended; if it hangs: lodestream unlock --epoch {record.epoch}",
            holder=record.holder,
            epoch=record.epoch,
            held_s=record.held_s,
            retry_after_s=record.ttl_s,
        )

    def _lose(self, reason: str) -> None:
        self._reason = reason
        self.lost.set()


def read_lease(register: CasRegister) -> tuple[LeaseRecord, Version] | None:
    """Return the lease's record and its version; None if nobody has ever had it."""
    found = register.read()
    return None if found is None else (LeaseRecord.from_json(found[0]), found[1])


def break_lease(register: CasRegister, epoch: int) -> LeaseRecord:
    """Give back a lease in its holder's place. If the holder is alive after all, it stops at its next step.

    Args:
        register: holds the record.
        epoch: which holder is meant; the lease of a later one stays.

    Returns:
        The record that was held.

    Raises:
        NotFoundError: nobody holds the lease, or somebody else does.
        CommitConflict: the holder has just given a sign of life.
    """
    found = read_lease(register)
    if found is None or found[0].released:
        raise NotFoundError("nobody holds the lease", "lodestream status")
    record, version = found
    if record.epoch != epoch:
        raise NotFoundError(
            f"the lease has epoch {record.epoch} ({record.holder}), not {epoch}",
            f"if that one hangs: lodestream unlock --epoch {record.epoch}",
        )
    register.cas(version, record.follow(released=True).to_json())
    return record


def name_holder(purpose: str) -> str:
    """Return how this process is called in a lease: what it does, where, and its number."""
    return f"{purpose} on {socket.gethostname()}, process {os.getpid()}"
