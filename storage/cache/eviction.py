"""What stays in a cache of so many bytes, and what goes: by when and how often it was used.

No one rule is best: where interest moves on, what was used last is worth keeping; where it stays, what is used often;
small entries before large ones; and none should fall to a scan that reads everything once. So four rules (``experts``)
run beside each other over the same uses, on names and sizes alone, and what is really held follows the one with the
most hits of late: what that one would not hold goes first (Subramanian et al., "Adaptive Caches", MICRO 2006).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from lodestream.storage.cache.experts import Expert, FrequencyExpert, RecencyExpert, TwoQueueExpert, WorthExpert

_MEMORY_LENGTHS: Final = 20  # hits are remembered for about so many uses for each entry that is held
_LEAST_MEMORY: Final = 64
_LARGEST_WEIGHT: Final = 1e100
_LEAD: Final = 1.0  # hits ahead before a new rule is followed: equal ones do not take turns


class Eviction:
    """The names and sizes of what a cache holds, at most ``budget_bytes`` of them. Not safe for several threads.

    Example:
        >>> held = Eviction(budget_bytes=2)
        >>> [held.admit(key, 1) for key in (b"a", b"b")], held.use(b"a"), held.admit(b"c", 1)
        ([[], []], True, [b'b'])
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError("a budget is not negative")
        self._budget = budget_bytes
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._strays: OrderedDict[bytes, None] = OrderedDict()  # held here, and dropped by the leader
        self._held = 0
        self._experts: tuple[Expert, ...] = (
            TwoQueueExpert(budget_bytes),
            RecencyExpert(budget_bytes),
            FrequencyExpert(budget_bytes),
            WorthExpert(budget_bytes),
        )
        self._hits = [0.0] * len(self._experts)
        self._weight = 1.0
        self._leader = 0  # until another one leads: that of two queues, which a first scan cannot empty

    @property
    def held_bytes(self) -> int:
        """The sum of the sizes that are held; never above the budget."""
        return self._held

    @property
    def leader(self) -> str:
        """The name of the rule that is followed."""
        return self._experts[self._leader].name

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def use(self, key: bytes) -> bool:
        """Note a use of ``key`` if it is held; returns whether it is. One that is not is noted when it is admitted."""
        size_bytes = self._sizes.get(key)
        if size_bytes is None:
            return False
        self._note(key, size_bytes)
        self._sizes.move_to_end(key)
        return True

    def admit(self, key: bytes, size_bytes: int) -> list[bytes]:
        """Hold ``key``, which was asked for and was not there.

        Args:
            key: a name that is not held.
            size_bytes: what it takes.

        Returns:
            The names that are not held any more; ``key`` itself among them where it is not worth the others.
        """
        if key in self._sizes:
            raise ValueError("the key is held already")
        self._note(key, size_bytes)
        if size_bytes > self._budget:
            return [key]
        self._sizes[key] = size_bytes
        self._held += size_bytes
        dropped = []
        while self._held > self._budget:
            dropped.append(self._find_victim())
            self._drop(dropped[-1])
        return dropped

    def remove(self, key: bytes) -> None:
        """Hold ``key`` no longer, for a reason of the caller's own."""
        for expert in self._experts:
            expert.forget(key)
        if key in self._sizes:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        self._held -= self._sizes.pop(key)
        self._strays.pop(key, None)

    def _note(self, key: bytes, size_bytes: int) -> None:
        """Tell the rules of a use. What lies back fades: a hit of now weighs more and more, so that one on which all
        rules agree need not be written down."""
        found = [expert.use(key, size_bytes) for expert in self._experts]
        self._weight /= 1 - 1 / (_MEMORY_LENGTHS * max(_LEAST_MEMORY, len(self._sizes)))
        if self._weight > _LARGEST_WEIGHT:
            self._hits = [hits / self._weight for hits in self._hits]
            self._weight = 1.0
        if all(found):
            return
        leader = self._experts[self._leader]
        self._strays.update(dict.fromkeys(name for name in leader.dropped if name in self._sizes))
        for expert in self._experts:
            expert.dropped.clear()
        if any(found):
            self._judge(found)

    def _judge(self, found: Sequence[bool]) -> None:
        """Count the hits of a use on which the rules differ, and follow another rule if it leads by now."""
        self._hits = [hits + self._weight * was_held for hits, was_held in zip(self._hits, found, strict=True)]
        best = max(range(len(self._hits)), key=self._hits.__getitem__)
        if self._hits[best] > self._hits[self._leader] + _LEAD * self._weight:
            self._leader = best
            self._strays = OrderedDict.fromkeys(name for name in self._sizes if name not in self._experts[best])

    def _find_victim(self) -> bytes:
        """What the leader dropped first of what is held; where it would hold everything, what was used longest ago."""
        leader = self._experts[self._leader]
        while self._strays:
            key = next(iter(self._strays))
            if key in self._sizes and key not in leader:
                return key
            del self._strays[key]
        return next(iter(self._sizes))
