"""Starts the processes of a chaos run, stops and kills them, and judges what is left."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from lodestream.storage.steps import STEPS
from tests.fault.chaos import preload, reader, worker
from tests.fault.chaos.setup import ChaosSetup, Events, read_events
from tests.fault.chaos.verdict import ChaosReport, judge
from tests.support.servers import Server

TICK_S = 0.05
AFTERMATH_S = 1.0

ALL_WINDOWS = tuple((step, action) for step in STEPS for action in ("kill", "stop"))
# Between the last look at the tables and the swing, where only the fence can stop a writer that has slept too long.
LAST_WINDOW = (("publish.synced", "stop"),)


@dataclass(frozen=True, kw_only=True)
class ChaosPlan:
    """How rough a run is.

    ``num_workers``      writers at a time
    ``duration_s``       how long they are troubled at least
    ``longest_s``        and at most, while the run is not ``enough``
    ``least_trouble``    kills from outside, and stops, before the run can be enough
    ``kill_every_s``     mean time between two kills from outside; likewise ``stop_every_s``
    ``restart_every_s``  likewise of restarts of the server in which they agree; 0 leaves it alone
    ``stopped_s``        the longest stop; longer than a lease lives
    ``windows``          steps at which workers kill or stop themselves
    """

    num_workers: int = 4
    duration_s: float = 10.0
    longest_s: float = 60.0
    least_trouble: int = 0
    kill_every_s: float = 4.0
    stop_every_s: float = 1.0
    restart_every_s: float = 0.0
    stopped_s: float = 2.0
    windows: tuple[tuple[str, str], ...] = ALL_WINDOWS
    seed: int = 1


@dataclass(kw_only=True)
class _Worker:
    slot: int
    life: int
    process: ForkServerProcess
    resume_at: float | None = None


class ChaosRun:
    """The processes of one run."""

    def __init__(
        self,
        setup: ChaosSetup,
        plan: ChaosPlan,
        *,
        enough: Callable[[Events], bool] = bool,
        server: Server | None = None,
    ) -> None:
        """``enough`` tells from what was written down whether the run has shown what it should; ``server`` is restarted
        where the plan says so."""
        self._setup, self._plan = setup, plan
        self._enough, self._server = enough, server
        self._random = random.Random(plan.seed)
        self._windows = self._list_windows()
        # Workers are forked from a server that has imported everything and done nothing: they start at once, and none
        # inherits Lance's threads.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload.__name__])
        self.num_kills = self.num_stops = self.num_restarts = 0

    def run(self) -> ChaosReport:
        """Runs, ends all processes, and judges."""
        self._setup.log.touch()
        watcher = self._start(reader.watch)
        workers = [self._start_worker(slot, 0) for slot in range(self._plan.num_workers)]
        try:
            self._trouble(workers)
            self._let_finish(workers)
        finally:
            for process in (watcher, *(each.process for each in workers)):
                process.kill()
                process.join()
        report = judge(self._setup, self._plan.num_workers)
        report.num_kills += self.num_kills
        report.num_stops += self.num_stops
        report.num_restarts = self.num_restarts
        return report

    def _trouble(self, workers: list[_Worker]) -> None:
        began, looked_at = time.monotonic(), 0.0
        while (elapsed := time.monotonic() - began) < self._plan.longest_s:
            if elapsed > self._plan.duration_s and elapsed > looked_at + 1:
                is_troubled = min(self.num_kills, self.num_stops) >= self._plan.least_trouble
                if is_troubled and self._enough(read_events(self._setup.log)):
                    return
                looked_at = elapsed
            time.sleep(TICK_S)
            self._resume(workers)
            if self._happens(self._plan.kill_every_s):
                self._random.choice(workers).process.kill()
                self.num_kills += 1
            if self._happens(self._plan.stop_every_s):
                self._stop(self._random.choice(workers))
            if self._server is not None and self._happens(self._plan.restart_every_s):
                self._server.stop()
                self._server.start()
                self.num_restarts += 1
            for position, each in enumerate(workers):
                if not each.process.is_alive():
                    workers[position] = self._start_worker(each.slot, each.life + 1)

    def _happens(self, every_s: float) -> bool:
        return every_s > 0 and self._random.random() < TICK_S / every_s

    def _stop(self, chosen: _Worker) -> None:
        if chosen.resume_at is None:
            _send(chosen, signal.SIGSTOP)
            self.num_stops += 1
            chosen.resume_at = time.monotonic() + self._pause()

    def _resume(self, workers: list[_Worker]) -> None:
        """Wakes those whose time has come, and notices those that stopped themselves."""
        for each in workers:
            if each.resume_at is None and _is_stopped(each):
                each.resume_at = time.monotonic() + self._pause()
            elif each.resume_at is not None and time.monotonic() >= each.resume_at:
                _send(each, signal.SIGCONT)
                each.resume_at = None

    def _pause(self) -> float:
        # Half of the stops are short, so that a writer wakes in the middle of another one's work.
        return self._random.choice([0.3, 1.0]) * self._random.uniform(0.1, self._plan.stopped_s)

    def _let_finish(self, workers: list[_Worker]) -> None:
        """Wakes all, so that what was stopped acts on what it last knew, and ends them."""
        for each in workers:
            _send(each, signal.SIGCONT)
        time.sleep(AFTERMATH_S)

    def _start_worker(self, slot: int, life: int) -> _Worker:
        window = next(self._windows)
        return _Worker(slot=slot, life=life, process=self._start(worker.work, slot, life, window))

    def _start(self, target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
        process = self._context.Process(target=target, args=(self._setup, *arguments), daemon=True)
        process.start()
        return process

    def _list_windows(self) -> Iterator[tuple[str, int, str] | None]:
        """Every window comes once before any comes again; every fourth life is left alone."""
        while True:
            windows = self._random.sample(self._plan.windows, len(self._plan.windows))
            for position, (step, action) in enumerate(windows):
                yield step, self._random.randint(1, 2), action
                if position % 4 == 3:
                    yield None


def _send(chosen: _Worker, number: signal.Signals) -> None:
    # A worker that has ended keeps its id until is_alive or join has seen it, so no other process is meant.
    if chosen.process.pid is not None and chosen.process.is_alive():
        os.kill(chosen.process.pid, number)


def _is_stopped(chosen: _Worker) -> bool:
    try:
        return Path(f"/proc/{chosen.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or between, opening and reading
        return False
