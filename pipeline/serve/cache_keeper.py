"""The one cache of a server, made when the width of the vectors is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lodestream.storage.cache.layered import CacheOptions, LayeredCache


class CacheKeeper:
    """Gives the parts of a server the same cache. Safe for many threads."""

    def __init__(self, options: CacheOptions) -> None:
        self._options = options
        self.on_purge: Callable[[], None] = lambda: None
        """Called, in another thread, after a purge of the cache's folder."""
        self._lock = threading.Lock()
        self._dim: int | None = None
        self._cache: LayeredCache | None = None

    def open(self, dim: int) -> LayeredCache:
        """The cache for vectors of this width. One of another width is closed: its pages stay on the disk."""
        with self._lock:
            if self._cache is None or self._dim != dim:
                before = self._cache
                self._cache = LayeredCache(self._options, dim=dim, on_purge=self._tell_purge)
                self._dim = dim
                if before is not None:
                    before.close()
            return self._cache

    def _tell_purge(self) -> None:
        self.on_purge()

    def count(self) -> dict[str, Any]:
        """The cache's counts; none before the first snapshot."""
        cache = self._cache
        return {} if cache is None else cache.count()

    def close(self) -> None:
        """Writes what waits to the disk."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
