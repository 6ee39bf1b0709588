"""The second tier: pages in a folder of the local disk, within a budget of bytes for the whole folder.

Pages are written once and never changed. The oldest goes first; of its entries those that were used since it was
written move into the page that takes its place, half of it at most, so that room is made in any case. While there is
room everything is taken; after that, what is asked for a second time.

Several processes may share a folder. Each writes pages of its own, under a lock that is never waited for, and finds
those of the others. Whatever goes wrong with a page makes a miss and removes it; where the folder cannot be written,
writing pauses and a warning says so.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

from lodestream.storage.cache.compact_rows import PageCodec, can_shrink
from lodestream.storage.cache.entry import Entry
from lodestream.storage.cache.page import SUFFIX, DamagedPage, ForeignPage, Page, PageEntry, encode_page, write_page
from lodestream.storage.cache.purge import LOCK, read_mark

PAGE_BYTES: Final = 1 << 20
PAUSE_S: Final = 60.0

_LOOK_EVERY_S: Final = 5.0
_ABANDONED_S: Final = 3600.0
_MAX_SEEN: Final = 1 << 16
_PAGES_IN_BUDGET: Final = 8
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class DiskCounts:
    """Look-ups so far; entries that went, for room or age, and came in; pages found damaged; what is held now.

    ``held_bytes`` is the folder's, the pages of other processes included.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    written: int = 0
    damaged: int = 0
    failures: int = 0
    entries: int = 0
    held_bytes: int = 0


class DiskTier:
    """Entries by key, kept over restarts. Safe for many threads and processes.

    Guarantees: no call raises for what the disk does; what comes back is what was put (with ``int4`` within that
    codec's error, and said to be so); the folder's pages take ``budget_bytes`` at most.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dim: int,
        codec: PageCodec,
        budget_bytes: int,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Find what is in ``folder``, which is made if need be.

        Args:
            folder: for pages alone.
            dim: width of the vectors.
            codec: how vectors are kept; pages of another codec or width are of no use, and go like others.
            budget_bytes: of the folder.
            max_age_s: seconds after which an entry is dropped.
            clock: seconds since 1970.
        """
        self._folder = folder
        self._dim = dim
        self._codec = codec
        self._budget = budget_bytes
        self._page_bytes = min(PAGE_BYTES, budget_bytes // _PAGES_IN_BUDGET)
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._pages: dict[str, Page] = {}
        self._places: dict[bytes, tuple[Page, int]] = {}
        self._used: set[bytes] = set()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._pending: dict[bytes, PageEntry] = {}
        self._pending_bytes = 0
        self._counts = DiskCounts()
        self._numbers = count()
        self._looked_at_s = -_LOOK_EVERY_S
        self._paused_until_s = 0.0
        self._purge_mark = read_mark(folder)
        with self._guard():
            folder.mkdir(parents=True, exist_ok=True)
            self._look()

    def get(self, key: bytes) -> tuple[str, Entry] | None:
        """Return the class and the entry of a key; None where there is none, or not any more."""
        with self._lock:
            waiting = self._pending.get(key)
            if waiting is not None:
                self._counts.hits += 1
                return waiting.kind, waiting.entry
            place = self._places.get(key)
        if place is None and self._clock() - self._looked_at_s > _LOOK_EVERY_S:
            with self._guard():
                self._look()
            place = self._places.get(key)
        found = self._read(*place) if place is not None else None
        is_true = found is not None and found.key == key and not self._is_old(found)
        with self._lock:
            self._counts.hits += is_true
            self._counts.misses += not is_true
            if is_true:
                self._used.add(key)
        return (found.kind, found.entry) if found is not None and is_true else None

    def put(self, kind: str, key: bytes, entry: Entry) -> None:
        """Take an entry that the store has given; it reaches the disk with others, or with ``flush``."""
        with self._lock:
            if entry.is_lossy or self._holds(key) or not self._admits(key):
                return
        if not can_shrink(entry):  # hashes the name of every row, so only where the entry is wanted
            return
        item = PageEntry(kind=kind, key=key, entry=entry, made_at_s=int(self._clock()))
        with self._lock:
            if self._holds(key):
                return
            self._pending[key] = item
            self._pending_bytes += entry.rows.nbytes
            is_full = self._pending_bytes >= self._page_bytes
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Write what waits to the disk."""
        with self._writing, self._guard():
            if not self._pending or self._clock() < self._paused_until_s:
                self._bound_pending()
                return
            with self._hold_folder() as is_mine:
                if is_mine:
                    if self.read_purge_mark() != self._purge_mark:
                        self.forget_purged()  # what has waited since before may be of a purged document
                    self._look()
                    self._write()
                else:
                    self._bound_pending()

    def read_purge_mark(self) -> str:
        """What the last purge of the folder left; it differs after each."""
        return read_mark(self._folder)

    def forget_purged(self) -> None:
        """After a purge: give up what waits to be written, and the pages that are gone."""
        with self._lock:
            self._purge_mark = self.read_purge_mark()
            self._pending.clear()
            self._pending_bytes = 0
        with self._guard():
            self._look()

    def count(self) -> DiskCounts:
        """Return the counts."""
        with self._lock:
            entries = len(self._places) + len(self._pending)
            return replace(self._counts, entries=entries, held_bytes=sum(self._sizes.values()))

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _read(self, page: Page, number: int) -> PageEntry | None:
        try:
            return page.read(number)
        except DamagedPage:
            self._discard(page.path)
        except OSError:
            with self._lock:
                self._forget(page.path.name)
        return None

    def _is_old(self, item: PageEntry) -> bool:
        return self._clock() - item.made_at_s > self._max_age_s

    def _holds(self, key: bytes) -> bool:
        return key in self._pending or key in self._places

    def _admits(self, key: bytes) -> bool:
        if sum(self._sizes.values()) + self._pending_bytes + self._page_bytes <= self._budget:
            return True
        if key in self._seen:
            del self._seen[key]
            return True
        self._seen[key] = None
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return False

    # ---- the folder ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Take up the pages that others wrote, and forget those that are gone."""
        self._looked_at_s = self._clock()
        present: dict[str, int] = {}
        for item in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                stat = item.stat()
                if item.name.endswith(".tmp") and self._clock() - stat.st_mtime > _ABANDONED_S:
                    os.unlink(item.path)
                elif item.name.endswith((SUFFIX, ".tmp")):
                    present[item.name] = stat.st_size
        with self._lock:
            for name in self._sizes.keys() - present.keys():
                self._forget(name)
            new = sorted(present.keys() - self._sizes.keys())
            self._sizes.update({name: present[name] for name in new})
        for name in new:
            if name.endswith(SUFFIX):
                self._open(self._folder / name)

    def _open(self, path: Path) -> None:
        try:
            page = Page.open(path, dim=self._dim, codec=self._codec)
        except ForeignPage:
            return
        except (DamagedPage, ValueError, KeyError):
            self._discard(path)
            return
        except OSError:
            return
        self._take_up(page)

    def _take_up(self, page: Page) -> None:
        with self._lock:
            self._sizes[page.path.name] = page.size_bytes
            self._pages[page.path.name] = page
            for number, key in enumerate(page.keys):
                self._places[key] = (page, number)

    def _discard(self, path: Path) -> None:
        """Remove a page that is not what was written."""
        with self._lock:
            self._forget(path.name)
            self._counts.damaged += 1
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        self._sizes.pop(name, None)
        page = self._pages.pop(name, None)
        if page is not None:
            for key in page.keys:
                if self._places.get(key, (None,))[0] is page:
                    del self._places[key]
                    self._used.discard(key)
                    self._counts.evictions += 1

    @contextmanager
    def _hold_folder(self) -> Iterator[bool]:
        """Whether this process may write. Never waits: another one may be stopped while it writes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOCK).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file gives the lock back

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """What the disk refuses is a pause in writing, and a warning."""
        try:
            yield
        except OSError as error:
            self._paused_until_s = self._clock() + PAUSE_S
            with self._lock:
                self._counts.failures += 1
            _LOG.warning("the cache at %s is not written for a minute: %s", self._folder, error)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        with self._lock:
            items = list(self._pending.values())
        written = list(items)
        data = encode_page(written, dim=self._dim, codec=self._codec)
        while (oldest := self._find_excess(len(data))) is not None:
            saved = self._save_used(oldest)
            self._remove(oldest)
            if saved:
                written += saved
                data = encode_page(written, dim=self._dim, codec=self._codec)
        if len(data) <= self._budget:
            name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}"
            page = Page.open(write_page(self._folder, name, data), dim=self._dim, codec=self._codec)
            self._take_up(page)
            with self._lock:
                self._counts.written += len(items)
        with self._lock:
            for item in items:
                self._pending.pop(item.key, None)
            self._pending_bytes = sum(item.entry.rows.nbytes for item in self._pending.values())

    def _save_used(self, name: str) -> list[PageEntry]:
        """The entries of a page that were used since it was written, as far as they take half of it."""
        page = self._pages.get(name)
        if page is None or self._codec == "int4":  # what lost once would lose again
            return []
        saved: list[PageEntry] = []
        room = page.size_bytes // 2
        for number, key in enumerate(page.keys):
            if key not in self._used or self._places.get(key, (None,))[0] is not page:
                continue
            item = self._read(page, number)
            if item is None:
                break
            room -= item.entry.rows.nbytes
            if room < 0:
                break
            if not self._is_old(item):
                saved.append(item)
        return saved

    def _find_excess(self, wanted_bytes: int) -> str | None:
        """The oldest file, if the folder has no room for so many bytes more."""
        with self._lock:
            is_full = bool(self._sizes) and sum(self._sizes.values()) + wanted_bytes > self._budget
            return min(self._sizes) if is_full else None

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self._folder / name).unlink()
        with self._lock:
            self._forget(name)

    def _bound_pending(self) -> None:
        """Give up what waits where it cannot be written and grows."""
        with self._lock:
            if self._pending_bytes > 2 * self._page_bytes:
                self._pending.clear()
                self._pending_bytes = 0
