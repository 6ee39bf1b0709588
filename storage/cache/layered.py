"""The two tiers as one: memory is asked first, then the disk; what the store gives reaches both."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from lodestream.schema import features_schema
from lodestream.storage.cache.compact_rows import PageCodec
from lodestream.storage.cache.disk import DiskTier
from lodestream.storage.cache.entry import Entry
from lodestream.storage.cache.memory import MemoryTier

CacheTier = Literal["memory", "disk"]

_MAX_WAITING: Final = 2048
_CLOSE_WAIT_S: Final = 10.0
_LOOK_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """What a cache may take.

    ``memory_bytes``  by class of entries: the granularities, and "text"
    ``folder``        of the disk tier; None has none
    ``disk_bytes``    of that folder; 0 has no disk tier
    ``codec``         "int8" keeps the stored codes, "int4" half of them and less exactly
    ``max_age_s``     age at which an entry goes
    """

    memory_bytes: Mapping[str, int]
    folder: Path | None
    disk_bytes: int
    codec: PageCodec
    max_age_s: float


class LayeredCache:
    """Entries by class and key (see ``entry``). Safe for many threads.

    Guarantees: what comes back is what was put under that key, unless it is said to be lossy; no call fails for what
    the disk does, and none waits for the disk to be written. Some seconds after a purge of the folder
    (``purge.purge_pages``) neither tier holds what it held before.
    """

    def __init__(self, options: CacheOptions, *, dim: int, on_purge: Callable[[], None] = lambda: None) -> None:
        """Args:
        options: sizes and folder.
        dim: width of the vectors.
        on_purge: called, in another thread, once what memory held before a purge has been given up.
        """
        self._on_purge = on_purge
        self._memory = MemoryTier(features_schema(dim), options.memory_bytes, max_age_s=options.max_age_s)
        self._disk: DiskTier | None = None
        if options.folder is not None and options.disk_bytes:
            self._disk = DiskTier(
                options.folder,
                dim=dim,
                codec=options.codec,
                budget_bytes=options.disk_bytes,
                max_age_s=options.max_age_s,
            )
        self._waiting: queue.Queue[tuple[str, bytes, Entry] | None] = queue.Queue(maxsize=_MAX_WAITING)
        self._dropped = 0
        self._writer: threading.Thread | None = None
        if self._disk is not None:
            self._writer = threading.Thread(
                target=self._write,
                args=(self._disk, self._disk.read_purge_mark()),
                name="lodestream-cache",
                daemon=True,
            )
            self._writer.start()

    def get(self, kind: str, key: bytes) -> tuple[Entry, CacheTier] | None:
        """Return the entry and the tier that had it; None where no tier has. What the disk had moves to memory."""
        entry = self._memory.get(kind, key)
        if entry is not None:
            return entry, "memory"
        found = self._disk.get(key) if self._disk is not None else None
        if found is None:
            return None
        self._memory.put(kind, key, found[1])
        return found[1], "disk"

    def needs_disk(self, kind: str, key: bytes) -> bool:
        """Whether ``get`` will most likely read a file."""
        return self._disk is not None and not self._memory.holds(kind, (key,))

    def holds_in_memory(self, kind: str, keys: Iterable[bytes]) -> bool:
        """Whether ``get_from_memory`` will most likely answer."""
        return self._memory.holds(kind, keys)

    def get_from_memory(self, kind: str, keys: Sequence[bytes]) -> list[Entry] | None:
        """Return the entries in the order of the keys, and wait for no file; None, which counts nothing, where memory
        lacks one."""
        return self._memory.get_all(kind, keys)

    def put(self, kind: str, key: bytes, entry: Entry) -> None:
        """Hold an entry that the store or the encoder has just given."""
        self._memory.put(kind, key, entry)
        if self._disk is not None:
            try:
                self._waiting.put_nowait((kind, key, entry))
            except queue.Full:  # the disk does not keep up; the entry comes again
                self._dropped += 1

    def count(self) -> dict[str, Any]:
        """Return the counts as JSON values: by class in memory, of the disk, and entries that never reached it."""
        names = ("hits", "misses", "evictions", "entries", "held_bytes")
        memory = {
            kind: {name: getattr(counts, name) for name in names} for kind, counts in self._memory.count().items()
        }
        disk: dict[str, int] = {}
        if self._disk is not None:
            counts = self._disk.count()
            disk = {name: getattr(counts, name) for name in (*names, "written", "damaged", "failures")}
            disk["dropped"] = self._dropped
        return {"memory": memory, "disk": disk}

    def close(self) -> None:
        """Write what waits to the disk, and end the thread that does so."""
        if self._writer is not None:
            try:
                self._waiting.put(None, timeout=_CLOSE_WAIT_S)
            except queue.Full:
                return
            self._writer.join(timeout=_CLOSE_WAIT_S)

    def _write(self, disk: DiskTier, mark: str) -> None:
        """Bring what waits to the disk; after a purge of its folder, forget that and what memory holds."""
        is_over = False
        while not is_over:
            items = self._take()
            if (now := disk.read_purge_mark()) != mark:
                mark = now
                items += [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
                self._memory.clear()
                self._on_purge()
                disk.forget_purged()
                is_over = None in items
                continue
            for item in items:
                if item is None:
                    is_over = True
                else:
                    disk.put(*item)
        disk.flush()

    def _take(self) -> list[tuple[str, bytes, Entry] | None]:
        """What has waited longest; nothing where nothing comes for some seconds."""
        try:
            return [self._waiting.get(timeout=_LOOK_EVERY_S)]
        except queue.Empty:
            return []
