"""Four rules for what a cache of so many bytes should hold. Each keeps the names and sizes of what it would hold, and
no values; ``eviction`` follows whichever does best at the moment.

All are deterministic: equal sequences of uses give equal contents. None is safe for several threads by itself.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from heapq import heappop, heappush, heapreplace
from typing import Final, Protocol

_MAX_USES: Final = 3
_FIRST_SHARE: Final = 0.1
_LEAST_SHARE, _LARGEST_SHARE = 0.01, 0.95
_LEAST_REMEMBERED: Final = 64


class Expert(Protocol):
    """One rule. ``name`` is for the counters; ``dropped`` collects what it dropped by itself, until it is emptied."""

    name: str
    dropped: list[bytes]

    def use(self, key: bytes, size_bytes: int) -> bool:
        """Note a use of ``key``, and hold it from now on if the rule would. Returns whether it was held."""

    def forget(self, key: bytes) -> None:
        """Drop ``key``, if it is held."""

    def __contains__(self, key: object) -> bool: ...


class RecencyExpert:
    """Holds what was used last (LRU)."""

    name = "recency"

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._held = 0
        self.dropped: list[bytes] = []

    def use(self, key: bytes, size_bytes: int) -> bool:
        """See Expert."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return True
        if size_bytes <= self._budget:
            self._sizes[key] = size_bytes
            self._held += size_bytes
            while self._held > self._budget:
                oldest, size = self._sizes.popitem(last=False)
                self._held -= size
                self.dropped.append(oldest)
        return False

    def forget(self, key: bytes) -> None:
        """See Expert."""
        self._held -= self._sizes.pop(key, 0)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes


class _Record:
    """Of a name: its uses, the floor and the number of the last one, and its size."""

    __slots__ = ("floor", "number", "size_bytes", "uses")

    def __init__(self, uses: int, floor: float, number: int, size_bytes: int) -> None:
        self.uses = uses
        self.floor = floor
        self.number = number
        self.size_bytes = size_bytes


class _RankExpert:
    """Holds what ranks highest; of equals, what was used last.

    The uses of what was dropped are remembered, of as many names as are held, so that what comes back for the third
    time does not count as new. A use of what is held costs two writes: a place in the heap is put right when it is the
    lowest.
    """

    name = ""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._records: dict[bytes, _Record] = {}
        self._heap: list[tuple[float, int, bytes]] = []  # rank and number of when the place was made
        self._left: OrderedDict[bytes, int] = OrderedDict()
        self._floor = 0.0  # rank of what was dropped last
        self._number = 0
        self._held = 0
        self.dropped: list[bytes] = []

    def use(self, key: bytes, size_bytes: int) -> bool:
        """See Expert."""
        self._number += 1
        record = self._records.get(key)
        if record is not None:
            record.uses += 1
            record.floor = self._floor
            record.number = self._number
            return True
        if size_bytes > self._budget:
            return False
        uses = self._left.pop(key, 0) + 1
        while self._held + size_bytes > self._budget:
            self._drop_lowest()
        record = self._records[key] = _Record(uses, self._floor, self._number, size_bytes)
        self._held += size_bytes
        heappush(self._heap, (self._rank(record), self._number, key))
        return False

    def forget(self, key: bytes) -> None:
        """See Expert."""
        record = self._records.pop(key, None)
        if record is not None:
            self._held -= record.size_bytes
            if len(self._heap) > 2 * len(self._records) + _LEAST_REMEMBERED:
                self._heap = sorted((self._rank(of), of.number, name) for name, of in self._records.items())

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def _rank(self, record: _Record) -> float:
        raise NotImplementedError

    def _drop_lowest(self) -> None:
        heap = self._heap
        while True:
            rank, number, key = heap[0]
            record = self._records.get(key)
            if record is None:
                heappop(heap)
            elif record.number == number:
                break
            else:
                heapreplace(heap, (self._rank(record), record.number, key))
        heappop(heap)
        self._floor = rank
        del self._records[key]
        self._held -= record.size_bytes
        self.dropped.append(key)
        self._left[key] = record.uses
        if len(self._left) > max(_LEAST_REMEMBERED, len(self._records)):
            self._left.popitem(last=False)


class FrequencyExpert(_RankExpert):
    """Holds what was used most often (LFU)."""

    name = "frequency"

    def _rank(self, record: _Record) -> float:
        return record.uses


class WorthExpert(_RankExpert):
    """Holds what is worth most for its size: the root of its uses by its bytes, and the more, the later it was used. So
    one large entry does not take the place of many small ones, and what was popular once goes in the end.

    After GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998): what an entry is worth counts from that of the last one
    dropped. The root keeps what came lately beside what was used often.
    """

    name = "worth"

    def _rank(self, record: _Record) -> float:
        return record.floor + math.sqrt(record.uses) / max(1, record.size_bytes)


class TwoQueueExpert:
    """New names wait in a small queue and move to the main one if they are used there again, so that a scan passes by
    without touching what is in use. The names of what was dropped are kept for a while: one that comes back goes to the
    main queue, and tells which of the two queues was too small.

    After S3-FIFO (Yang et al., SOSP 2023), with the shares adapted as in ARC (Megiddo and Modha, FAST 2003).
    """

    name = "two queues"

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._small_target = budget_bytes * _FIRST_SHARE
        self._uses: dict[bytes, int] = {}
        self._small, self._main = _Queue(), _Queue()
        self._left_small, self._left_main = _Queue(), _Queue()
        self.dropped: list[bytes] = []

    def use(self, key: bytes, size_bytes: int) -> bool:
        """See Expert."""
        if key in self._uses:
            self._uses[key] = min(_MAX_USES, self._uses[key] + 1)
            if key in self._small.sizes:
                self._small.sizes.move_to_end(key)
            return True
        if size_bytes > self._budget:
            return False
        comes_back = self._adapt(key, size_bytes)
        while self._small.held + self._main.held + size_bytes > self._budget:
            self._make_room()
        (self._main if comes_back else self._small).push(key, size_bytes)
        self._uses[key] = 0
        return False

    def forget(self, key: bytes) -> None:
        """See Expert."""
        if self._uses.pop(key, None) is not None:
            (self._small if key in self._small.sizes else self._main).remove(key)

    def __contains__(self, key: object) -> bool:
        return key in self._uses

    def _adapt(self, key: bytes, size_bytes: int) -> bool:
        """Shift the shares if ``key`` was dropped a while ago; returns whether it was."""
        small, main = self._left_small, self._left_main
        if key in small.sizes:
            gain = size_bytes * max(1.0, main.held / max(1, small.held))
            self._small_target = min(self._budget * _LARGEST_SHARE, self._small_target + gain)
            small.remove(key)
            return True
        if key in main.sizes:
            gain = size_bytes * max(1.0, small.held / max(1, main.held))
            self._small_target = max(self._budget * _LEAST_SHARE, self._small_target - gain)
            main.remove(key)
            return True
        return False

    def _make_room(self) -> None:
        """Take the oldest name of one queue out of it: it is dropped, or moves on if it was used."""
        if self._small.sizes and (self._small.held > self._small_target or not self._main.sizes):
            key, size_bytes = self._small.pop()
            if self._uses[key]:
                self._uses[key] = 0
                self._main.push(key, size_bytes)
                return
            left = self._left_small
        else:
            key, size_bytes = self._main.pop()
            if self._uses[key]:
                self._uses[key] -= 1
                self._main.push(key, size_bytes)
                return
            left = self._left_main
        del self._uses[key]
        self.dropped.append(key)
        left.push(key, size_bytes)
        while left.held > self._budget:
            left.pop()


class _Queue:
    """Names with their sizes, oldest first; ``held``: the sum of the sizes."""

    __slots__ = ("held", "sizes")

    def __init__(self) -> None:
        self.sizes: OrderedDict[bytes, int] = OrderedDict()
        self.held = 0

    def push(self, key: bytes, size_bytes: int) -> None:
        self.sizes[key] = size_bytes
        self.held += size_bytes

    def pop(self) -> tuple[bytes, int]:
        key, size_bytes = self.sizes.popitem(last=False)
        self.held -= size_bytes
        return key, size_bytes

    def remove(self, key: bytes) -> None:
        self.held -= self.sizes.pop(key)
