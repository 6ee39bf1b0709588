"""Follows the published pointer: requests pin a snapshot, and a new one is swapped in beside them.

A thread reads the pointer every ``interval_s``. What it publishes is opened and handed to the parts first, and only
then becomes what ``pin`` gives; requests that hold the old one keep it until they leave, and it is closed after the
last. Where the pointer cannot be read, or the new snapshot cannot be opened, the one that is served stays, and
``trouble`` says why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, Protocol

from lodestream.errors import LodestreamError, ServiceUnavailable, StoreNotFound
from lodestream.pipeline.serve.parts import Encoding
from lodestream.storage.location import Location
from lodestream.storage.pointer_reader import PointerReader
from lodestream.storage.snapshot import PointerRecord, SnapshotRecord
from lodestream.storage.store import Snapshot, require_schema

SnapshotNumber = int | Literal["latest"]

_RETRY_AFTER_S: Final = 5.0
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 60.0

logger = logging.getLogger("lodestream.serve")


@dataclass(eq=False, slots=True, kw_only=True)
class View:
    """One snapshot as requests see it. ``encoding``: of its feature version; None for an older one that has another.
    ``num_users``: what holds it open, the follower's own hold on the latest one included."""

    snapshot: Snapshot
    record: SnapshotRecord
    encoding: Encoding | None
    num_users: int = 0


class ViewKeeper(Protocol):
    """Opens and closes the views; all calls but ``open_older`` come from one thread at a time."""

    def open_latest(self, snapshot: Snapshot, record: SnapshotRecord, *, before: View | None) -> View: ...

    def open_older(self, snapshot: Snapshot, record: SnapshotRecord) -> View: ...

    def close_view(self, view: View) -> None: ...


class Follower:
    """Gives requests their snapshot. Safe for many threads.

    Guarantees: a view stays readable while it is pinned; ``pin("latest")`` waits for nothing; a failure to read or open
    what is new never takes away what is served.
    """

    def __init__(self, location: Location, keeper: ViewKeeper, *, interval_s: float) -> None:
        self._location = location
        self._reader = PointerReader(location)
        self._keeper = keeper
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._views: dict[int, View] = {}
        self._latest: View | None = None
        self._pointer: PointerRecord | None = None
        self._trouble: LodestreamError | None = None
        self._closing: list[View] = []
        self._wake = threading.Event()
        self._has_looked = False
        self._refusal = _Refusal()
        self._stopped = False
        self._thread: threading.Thread | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Looks once, in the caller's thread, and goes on looking in one of its own."""
        self.look()
        self._thread = threading.Thread(target=self._run, name="lodestream-follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and lets the latest snapshot go."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._reader.close()
        with self._lock:
            latest, self._latest = self._latest, None
        if latest is not None:
            self.leave(latest)
        self._close_left()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._close_left()
            if not self._stopped:
                self.look()

    # ---- what is there ---------------------------------------------------------------------------------------------

    @property
    def latest(self) -> View | None:
        """What ``pin`` gives; None while nothing is published."""
        return self._latest

    @property
    def pointer(self) -> PointerRecord | None:
        """The pointer as it was last read."""
        return self._pointer

    @property
    def has_looked(self) -> bool:
        """Whether the pointer was looked at once, with success or without."""
        return self._has_looked

    @property
    def trouble(self) -> LodestreamError | None:
        """Why the last look failed; None where it did not."""
        return self._trouble

    def freshness_s(self, view: View, now: datetime | None = None) -> float:
        """Seconds since the time up to which every source was known complete when ``view`` was last confirmed.

        Of the latest snapshot a run that finds nothing confirms it anew; an older one ages.
        """
        now = now or datetime.now(UTC)
        pointer = self._pointer
        checkpoint, confirmed = view.record.checkpoint, view.record.published_at
        if pointer is not None and view is self._latest and pointer.sequence == view.record.sequence:
            checkpoint, confirmed = pointer.checkpoint, pointer.checked_at or confirmed
        marks = [datetime.fromisoformat(seen["watermark"]) for seen in checkpoint.values() if seen.get("watermark")]
        if (len(marks) < len(checkpoint) and confirmed is not None) or not marks:
            marks.append(confirmed or now)
        return max(0.0, (now - min(marks)).total_seconds())

    # ---- pinning ---------------------------------------------------------------------------------------------------

    @contextmanager
    def pin(self, number: SnapshotNumber = "latest") -> Iterator[View]:
        """``enter``, and ``leave`` when the context ends."""
        view = self.enter(number)
        try:
            yield view
        finally:
            self.leave(view)

    def has_open(self, number: SnapshotNumber) -> bool:
        """Whether ``enter(number)`` opens no file."""
        return number == "latest" or number in self._views

    def enter(self, number: SnapshotNumber = "latest") -> View:
        """Holds a snapshot open until ``leave``. One that nobody has open yet is opened: not for the event loop.

        Raises:
            ServiceUnavailable: nothing is published yet.
            NotFoundError: there is no such snapshot, or no longer.
        """
        with self._lock:
            view = self._latest if number == "latest" else self._views.get(number)
            if view is not None:
                view.num_users += 1
                return view
        if number == "latest" or self._pointer is None:
            raise ServiceUnavailable(*self._say_missing(), retry_after_s=_RETRY_AFTER_S)
        record = self._pointer.find_snapshot(number)
        opened = self._keeper.open_older(Snapshot(self._location, record), record)
        with self._lock:
            view = self._views.setdefault(number, opened)
            view.num_users += 1
        return view

    def leave(self, view: View) -> None:
        """Ends one hold."""
        with self._lock:
            view.num_users -= 1
            if view.num_users:
                return
            if self._views.get(view.record.sequence) is view:
                del self._views[view.record.sequence]
            self._closing.append(view)
        # Parts are told on the follower's thread: a request does not wait for what it leaves behind.
        self._wake.set()

    def count_users(self, encoding: Encoding) -> int:
        """How many open views share an encoding."""
        with self._lock:
            return sum(view.encoding is encoding for view in self._views.values())

    def _close_left(self) -> None:
        with self._lock:
            left, self._closing = self._closing, []
        for view in left:
            self._keeper.close_view(view)

    def _say_missing(self) -> tuple[str, str]:
        trouble = self._trouble
        if trouble is not None and not isinstance(trouble, StoreNotFound):
            return trouble.message, trouble.hint
        return f"nothing is published at {self._location} yet", "lodestream run"

    # ---- following -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Reads the pointer and moves to what it publishes. What fails becomes ``trouble``."""
        try:
            self._follow()
        except LodestreamError as error:
            self._trouble = error
        except (KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as error:  # the thread's edge: it goes on, also after a panic of Lance, which is no Exception
            logger.exception("the snapshot cannot be followed")
            self._trouble = LodestreamError(f"the snapshot cannot be followed: {type(error).__name__}: {error}")
        else:
            self._trouble = None
        self._has_looked = True

    def _follow(self) -> None:
        known = self._pointer
        pointer = self._reader.read()
        if known is not None and pointer.nonce == known.nonce and self._trouble is None:
            return
        latest = self._latest
        if not pointer.history:
            self._pointer = pointer
            return
        record = pointer.history[-1]
        if latest is None or (record.sequence, record.tables) != (latest.record.sequence, latest.record.tables):
            self._refusal.check(pointer.nonce)
            try:
                require_schema(self._location, pointer)
                self._swap(record)
            except Exception as error:
                self._refusal.note(pointer.nonce, error)
                raise
        self._pointer = pointer

    def _swap(self, record: SnapshotRecord) -> None:
        before = self._latest
        view = self._keeper.open_latest(Snapshot(self._location, record), record, before=before)
        view.num_users = 1
        with self._lock:
            self._views[record.sequence] = view
            self._latest = view
        if before is not None:
            self.leave(before)


class _Refusal:
    """A snapshot that could not be opened is tried again after a second, then after twice as long each time: to open it
    may load a model."""

    def __init__(self) -> None:
        self._nonce = ""
        self._error: Exception | None = None
        self._wait_s = 0.0
        self._retry_at = 0.0

    def check(self, nonce: str) -> None:
        """Raises the error of the last attempt again, until it is time for another one or the pointer has changed."""
        if self._error is not None and nonce == self._nonce and time.monotonic() < self._retry_at:
            raise self._error

    def note(self, nonce: str, error: Exception) -> None:
        """An attempt has failed."""
        again = self._error is not None and nonce == self._nonce
        self._wait_s = min(self._wait_s * 2, _LAST_RETRY_S) if again else _FIRST_RETRY_S
        self._nonce, self._error, self._retry_at = nonce, error, time.monotonic() + self._wait_s
