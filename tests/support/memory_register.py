"""A register in this process, whose replies can be lost, and a clock that moves when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lodestream.errors import CommitConflict, CommitStateUnknown, StoreUnreachable
from lodestream.storage.registers.protocol import Record, Version


@dataclass
class MemoryRegister:
    """A CasRegister.

    ``is_down`` makes it unreachable; ``lose_replies`` accepts that many swaps more and denies knowing it.
    """

    record: Record | None = None
    number: int = 0
    is_down: bool = False
    lose_replies: int = 0

    def read(self) -> tuple[Record, Version] | None:
        """See CasRegister."""
        if self.is_down:
            raise StoreUnreachable("no answer")
        return None if self.record is None else (self.record, str(self.number))

    def cas(self, expected_version: Version | None, record: Record) -> Version:
        """See CasRegister."""
        found = self.read()
        if (None if found is None else found[1]) != expected_version:
            raise CommitConflict("another writer")
        self.record, self.number = record, self.number + 1
        if self.lose_replies:
            self.lose_replies -= 1
            raise CommitStateUnknown("the reply was lost")
        return str(self.number)

    def close(self) -> None:
        """See CasRegister."""

    def wipe(self) -> None:
        """Forgets everything, as a Redis without a disk does."""
        self.record, self.number = None, 0


@dataclass
class FakeClock:
    """Monotonic seconds. ``sleep`` passes them, and then calls ``on_sleep``."""

    now: float = 1000.0
    on_sleep: Callable[[], None] = lambda: None
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Passes ``seconds``."""
        self.now += seconds
        self.slept.append(seconds)
        self.on_sleep()
