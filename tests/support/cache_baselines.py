"""The two plain policies that the cache is held against, each written the shortest way, and how a trace is run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from lodestream.storage.cache.eviction import Eviction
from tests.support.cache_traces import Trace


class Policy(Protocol):
    def look_up(self, key: bytes, size_bytes: int) -> bool: ...


class Lru:
    """Least recently used goes first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sizes: OrderedDict[bytes, int] = OrderedDict()
        self.held = 0

    def look_up(self, key: bytes, size_bytes: int) -> bool:
        if key in self.sizes:
            self.sizes.move_to_end(key)
            return True
        self.sizes[key] = size_bytes
        self.held += size_bytes
        while self.held > self.budget:
            self.held -= self.sizes.popitem(last=False)[1]
        return False


class Lfu:
    """Least often used while held goes first, of equals the least recently used."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sizes: dict[bytes, int] = {}
        self.uses: dict[bytes, int] = {}
        self.levels: dict[int, OrderedDict[bytes, None]] = {}
        self.held = 0

    def look_up(self, key: bytes, size_bytes: int) -> bool:
        if key in self.sizes:
            self.move(key, self.uses[key] + 1)
            return True
        while self.sizes and self.held + size_bytes > self.budget:
            least = next(iter(self.levels[min(self.levels)]))
            self.move(least, 0)
            self.held -= self.sizes.pop(least)
        if self.held + size_bytes <= self.budget:
            self.sizes[key] = size_bytes
            self.held += size_bytes
            self.move(key, 1)
        return False

    def move(self, key: bytes, uses: int) -> None:
        before = self.uses.pop(key, 0)
        if before:
            del self.levels[before][key]
            if not self.levels[before]:
                del self.levels[before]
        if uses:
            self.uses[key] = uses
            self.levels.setdefault(uses, OrderedDict())[key] = None


class Ours:
    """The cache's own."""

    def __init__(self, budget: int) -> None:
        self.eviction = Eviction(budget)

    def look_up(self, key: bytes, size_bytes: int) -> bool:
        if self.eviction.use(key):
            return True
        self.eviction.admit(key, size_bytes)
        return False


def hit_rate(make: Callable[[int], Policy], budget: int, trace: Trace) -> float:
    """Share of the uses that find what they ask for."""
    policy = make(budget)
    return sum(policy.look_up(key, size) for key, size in trace) / len(trace)
