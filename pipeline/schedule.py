"""A refresh every so often, in one process: on a monotonic clock, never two at once, loud where it cannot go on.

Ticks lie on a grid of the period from the first one on. A tick that falls into a refresh is left out, so that a slow
one is followed by a pause and not by a queue. Each waits a little longer than the grid says, at random: many hosts that
were started together do not ask their sources in step.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from lodestream.errors import ConfigError, LodestreamError, ScheduleStopped

MAX_FAILURES: Final = 5
MAX_JITTER_SHARE: Final = 0.05
MAX_JITTER_S: Final = 15.0
MIN_PERIOD_S: Final = 1.0

Outcome = Literal["done", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What the schedule waits by; tests give another one. ``wait`` returns True where waiting is to end for good."""

    now: Callable[[], float]
    wait: Callable[[float], bool]
    jitter: Callable[[float], float]


def run_every(
    every_s: float,
    refresh: Callable[[], Outcome],
    *,
    clock: Clock,
    show_failure: Callable[[LodestreamError, int], None],
) -> int:
    """Refreshes until it is told to end or has failed too often.

    Args:
        every_s: the period.
        refresh: one refresh; "skipped" where another process holds the lease, which is no failure.
        clock: what to wait by.
        show_failure: called with each failure and its number in a row.

    Returns:
        Number of refreshes, the skipped ones included.

    Raises:
        ConfigError: the period is too short, or the configuration is wrong: that does not mend itself.
        ScheduleStopped: MAX_FAILURES refreshes in a row failed.
    """
    if every_s < MIN_PERIOD_S:
        raise ConfigError(f"--every must be at least {MIN_PERIOD_S:g}s", "give a period such as 5m")
    first = clock.now()
    failures, num_refreshes = 0, 0
    while True:
        try:
            refresh()
            failures = 0
        except ConfigError:
            raise
        except LodestreamError as error:
            failures += 1
            show_failure(error, failures)
            if failures >= MAX_FAILURES:
                raise ScheduleStopped(
                    f"{failures} refreshes in a row failed, the last one: {error.message}",
                    error.hint or "lodestream check",
                ) from error
        num_refreshes += 1
        if clock.wait(_wait_s(clock.now() - first, every_s) + clock.jitter(every_s)):
            return num_refreshes


def _wait_s(elapsed_s: float, every_s: float) -> float:
    """Seconds to the next point of the grid; a point that has passed is left out."""
    return every_s - elapsed_s % every_s


@contextmanager
def process_clock() -> Iterator[Clock]:
    """The real clock. While the context lasts SIGTERM ends the schedule between two refreshes, not within one."""
    ends = threading.Event()

    def end(number: int, frame: Any) -> None:
        ends.set()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield Clock(now=time.monotonic, wait=ends.wait, jitter=_draw_jitter)
    finally:
        signal.signal(signal.SIGTERM, before)


def _draw_jitter(every_s: float) -> float:
    return random.uniform(0, min(MAX_JITTER_S, MAX_JITTER_SHARE * every_s))
