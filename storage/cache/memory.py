"""The first tier: rows in the memory of this process, decoded, within a budget of bytes for each class of entries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from lodestream.storage.cache.entry import Entry
from lodestream.storage.cache.eviction import Eviction

OVERHEAD_BYTES: Final = 1536
"""What an entry takes besides its bytes: names and sizes in the rules of eviction, and Python's objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """An entry as one buffer: a live batch of seventeen columns takes 8 KiB more, and this opens in 10 us."""

    buffer: pa.Buffer
    source: str
    num_tokens: int
    is_lossy: bool
    added_at_s: float


@dataclass(slots=True)
class MemoryCounts:
    """Of one class: look-ups so far, entries dropped for room or age, and what is held."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: int = 0
    held_bytes: int = 0


class MemoryTier:
    """Entries by key. Safe for many threads.

    Guarantees: the bytes of each class, overhead included, never exceed its budget; an entry older than ``max_age_s``
    is never given.
    """

    def __init__(
        self,
        schema: pa.Schema,
        budgets: Mapping[str, int],
        *,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it empty.

        Args:
            schema: of the rows.
            budgets: bytes by class; a class of 0 bytes, or one that is not named, holds nothing.
            max_age_s: seconds after which an entry is dropped.
            clock: seconds, only ever forward.
        """
        self._classes = {name: _Class(schema, budget, max_age_s, clock) for name, budget in budgets.items() if budget}

    def get(self, kind: str, key: bytes) -> Entry | None:
        """Return the entry of a class; None where it is not held."""
        held = self._classes.get(kind)
        return held.get(key) if held is not None else None

    def get_all(self, kind: str, keys: Sequence[bytes]) -> list[Entry] | None:
        """Return the entries of a class in the order of the keys; None, which counts nothing, where one is not held."""
        held = self._classes.get(kind)
        return held.get_all(keys) if held is not None else None

    def holds(self, kind: str, keys: Iterable[bytes]) -> bool:
        """Whether all of the entries are held; this counts as no use of them."""
        held = self._classes.get(kind)
        return held is not None and held.holds(keys)

    def put(self, kind: str, key: bytes, entry: Entry) -> None:
        """Hold an entry if it is worth others' place. One that is held already stays as it is."""
        held = self._classes.get(kind)
        if held is not None:
            held.put(key, entry)

    def clear(self) -> None:
        """Hold nothing any more."""
        for held in self._classes.values():
            held.clear()

    def count(self) -> dict[str, MemoryCounts]:
        """Return the counts of each class."""
        return {name: held.count() for name, held in self._classes.items()}


class _Class:
    def __init__(self, schema: pa.Schema, budget: int, max_age_s: float, clock: Callable[[], float]) -> None:
        self._schema = schema
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[bytes, _Held] = {}
        self._budget = budget
        self._eviction = Eviction(budget)
        self._counts = MemoryCounts()

    def get(self, key: bytes) -> Entry | None:
        with self._lock:
            held = self._entries.get(key)
            if held is not None and self._clock() - held.added_at_s > self._max_age_s:
                self._eviction.remove(key)
                del self._entries[key]
                self._counts.evictions += 1
                held = None
            if held is None:
                self._counts.misses += 1
                return None
            self._counts.hits += 1
            self._eviction.use(key)
        return self._open(held)

    def get_all(self, keys: Sequence[bytes]) -> list[Entry] | None:
        with self._lock:
            oldest_s = self._clock() - self._max_age_s
            found = [self._entries.get(key) for key in keys]
            held = [one for one in found if one is not None and one.added_at_s >= oldest_s]
            if len(held) < len(keys):
                return None
            self._counts.hits += len(keys)
            for key in keys:
                self._eviction.use(key)
        return [self._open(one) for one in held]

    def holds(self, keys: Iterable[bytes]) -> bool:
        with self._lock:
            return all(map(self._entries.__contains__, keys))

    def _open(self, held: _Held) -> Entry:
        rows = pa.ipc.read_record_batch(held.buffer, self._schema)
        return Entry(rows=rows, source=held.source, num_tokens=held.num_tokens, is_lossy=held.is_lossy)

    def put(self, key: bytes, entry: Entry) -> None:
        buffer = entry.rows.serialize()
        size_bytes = buffer.size + len(entry.source) + OVERHEAD_BYTES
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = _Held(
                buffer=buffer,
                source=entry.source,
                num_tokens=entry.num_tokens,
                is_lossy=entry.is_lossy,
                added_at_s=self._clock(),
            )
            for dropped in self._eviction.admit(key, size_bytes):
                del self._entries[dropped]
                self._counts.evictions += 1

    def clear(self) -> None:
        with self._lock:
            self._counts.evictions += len(self._entries)
            self._entries.clear()
            self._eviction = Eviction(self._budget)

    def count(self) -> MemoryCounts:
        with self._lock:
            counts = self._counts
            return MemoryCounts(
                hits=counts.hits,
                misses=counts.misses,
                evictions=counts.evictions,
                entries=len(self._entries),
                held_bytes=self._eviction.held_bytes,
            )
