"""Refreshes on a grid of the monotonic clock: late ones leave ticks out, failures in a row end it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from lodestream.errors import ConfigError, LodestreamError, ScheduleStopped, SourceUnavailable
from lodestream.pipeline import schedule
from lodestream.pipeline.schedule import MAX_FAILURES, Clock, Outcome, process_clock, run_every


class Time:
    """A clock that moves by what is waited for and by what refreshes take; ends after ``limit`` waits."""

    def __init__(self, limit: int, *, jitter: Callable[[float], float] = lambda every_s: 0.0) -> None:
        self.now_s = 1000.0
        self.waits = 0
        self.limit = limit
        self.clock = Clock(now=lambda: self.now_s, wait=self.wait, jitter=jitter)

    def wait(self, seconds: float) -> bool:
        assert seconds > 0
        self.now_s += seconds
        self.waits += 1
        return self.waits >= self.limit


def run(time: Time, takes_s: list[float], outcome: Outcome = "done") -> list[float]:
    """Starts of the refreshes, which take so long one after the other."""
    starts = []

    def refresh() -> Outcome:
        starts.append(time.now_s - 1000)
        time.now_s += takes_s[len(starts) - 1]
        return outcome

    assert run_every(300, refresh, clock=time.clock, show_failure=lambda error, number: None) == time.limit
    return starts


def test_ticks_lie_on_a_grid() -> None:
    assert run(Time(4), [1, 200, 0, 30]) == [0, 300, 600, 900]


def test_tick_within_a_refresh_is_left_out() -> None:
    assert run(Time(4), [1, 301, 950, 1]) == [0, 300, 900, 2100]


def test_jitter_delays_and_does_not_add_up() -> None:
    assert run(Time(4, jitter=lambda every_s: 7.0), [1, 1, 1, 1]) == [0, 307, 607, 907]


@pytest.mark.parametrize("every_s", [10, 300, 86400])
def test_jitter_is_small(every_s: float) -> None:
    drawn = [schedule._draw_jitter(every_s) for _ in range(200)]
    assert 0 <= min(drawn) < max(drawn) <= min(15, every_s / 20)


def fail(number: int, error: LodestreamError) -> tuple[list[int], BaseException | None]:
    """Fails ``number`` times in a row, works once, and so on; returns the numbers shown and what ended it."""
    calls: list[int] = []
    shown: list[int] = []

    def refresh() -> Outcome:
        calls.append(1)
        if len(calls) % (number + 1):
            raise error
        return "done"

    try:
        run_every(60, refresh, clock=Time(20).clock, show_failure=lambda _, count: shown.append(count))
    except LodestreamError as ended:
        return shown, ended
    return shown, None


def test_five_failures_in_a_row_end_it_with_the_reason() -> None:
    shown, ended = fail(MAX_FAILURES, SourceUnavailable("no route to the database", "start it"))
    assert shown == [1, 2, 3, 4, 5]
    assert isinstance(ended, ScheduleStopped)
    assert "5 refreshes in a row failed" in ended.message and "no route" in ended.message and ended.hint == "start it"


def test_success_between_failures_starts_the_count_again() -> None:
    shown, ended = fail(MAX_FAILURES - 1, SourceUnavailable("gone", "wait"))
    assert (shown, ended) == ([1, 2, 3, 4] * 4, None)


def test_skipped_refresh_is_no_failure() -> None:
    assert len(run(Time(7), [0] * 7, "skipped")) == 7


def test_wrong_configuration_ends_it_at_once() -> None:
    shown, ended = fail(1, ConfigError("no such source", "correct it"))
    assert (shown, type(ended)) == ([], ConfigError)


def test_defect_is_not_taken_for_a_failure_of_the_source() -> None:
    def refresh() -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_every(60, refresh, clock=Time(20).clock, show_failure=lambda error, number: None)


def test_period_that_is_too_short_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1s"):
        run_every(0.1, lambda: "done", clock=Time(1).clock, show_failure=lambda error, number: None)


def test_sigterm_ends_the_wait_and_lets_a_refresh_end() -> None:
    done: list[str] = []

    def refresh() -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("done")
        return "done"

    before = signal.getsignal(signal.SIGTERM)
    with process_clock() as clock:
        assert run_every(3600, refresh, clock=clock, show_failure=lambda error, number: None) == 1
    assert done == ["done"]
    assert signal.getsignal(signal.SIGTERM) == before
    with process_clock() as clock:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        assert clock.wait(60) is True
        timer.join()
