"""Gathers what concurrent requests ask for into batches, and runs them one after another beside the event loop.

    request -> items, a token count each -> [waiting requests, in turns] -> batch -> worker thread -> results

An idle worker starts at once; what arrives while it is busy waits for the next batch. The waiting requests take turns
item by item, so that a request of one item shares the next batch with a request of a thousand.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from lodestream.errors import Overloaded, RequestTooLarge, ServiceUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RETRY_AFTER_S: Final = 60.0
_NEW_SHARE: Final = 0.2
"""How much the latest batch counts in the measured rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherOptions:
    """``batch_tokens``: tokens of a batch, but for a single item that is longer. ``max_queued_tokens``: tokens that may
    wait; a request beyond that is refused."""

    batch_tokens: int = 1024
    max_queued_tokens: int = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch that was run. ``waits_s``: how long each of its items had waited; ``ran_s``: how long it took."""

    tokens: int
    waits_s: Sequence[float]
    ran_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class _Request(Generic[Item, Result]):
    items: Sequence[Item]
    tokens: Sequence[int]
    submitted_s: float
    done: asyncio.Future[list[Result | Exception]]
    num_picked: int = 0
    waiting_tokens: int = 0
    results: dict[int, Result | Exception] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Answered, or given up by whoever asked."""
        return self.done.done()


@dataclass(frozen=True, slots=True)
class _Place(Generic[Item, Result]):
    """One item's place in its request."""

    request: _Request[Item, Result]
    index: int


class MicroBatcher(Generic[Item, Result]):
    """Runs ``run`` on batches of items in one worker thread.

    Guarantees: every item of a request that is waited for is run once, in the order of its request; an item that
    fails does not fail the others of its batch; items of a request that was cancelled are not run any more once it
    was. Belongs to one event loop: what is not said to be for any thread is called in it.

    Args:
        run: gives one result for each item, in order. Called in the worker thread, never twice at a time.
        options: sizes of batches and of the queue.
        start_thread: called in the worker thread before anything else.
        on_batch: called in the event loop after each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        options: BatcherOptions,
        *,
        start_thread: Callable[[], None] | None = None,
        on_batch: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        self._run = run
        self._options = options
        self._on_batch = on_batch
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encode", initializer=start_thread)
        self._waiting: deque[_Request[Item, Result]] = deque()
        self._open: set[_Request[Item, Result]] = set()
        self._reserved_tokens = 0
        self._waiting_tokens = 0
        self._tokens_per_s = 0.0
        self._is_busy = False
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait, and those that are reserved for requests on their way."""
        return self._waiting_tokens + self._reserved_tokens

    @property
    def num_requests(self) -> int:
        """Requests that are not answered yet."""
        return len(self._open)

    @property
    def tokens_per_s(self) -> float:
        """The measured rate; 0 before the first batch."""
        return self._tokens_per_s

    @contextmanager
    def reserve(self, tokens: int) -> Iterator[None]:
        """Keeps room in the queue for a request that is not submitted yet.

        Raises:
            RequestTooLarge, ServiceUnavailable, Overloaded: as ``submit``.
        """
        self._check_room(tokens)
        self._reserved_tokens += tokens
        try:
            yield
        finally:
            self._reserved_tokens -= tokens

    async def submit(self, items: Sequence[Item], tokens: Sequence[int]) -> list[Result | Exception]:
        """Waits for the results of ``items``. Cancelling it takes what is still waiting out of the queue.

        Args:
            items: what ``run`` is to be called with.
            tokens: how much each counts.

        Returns:
            For each item its result, or the exception that it alone raised.

        Raises:
            RequestTooLarge: the queue would not hold it even if it were empty.
            Overloaded: the queue is too full.
            ServiceUnavailable: the batcher is closed, or was before the answer was there.
        """
        if not items:
            return []
        total = sum(tokens)
        self._check_room(total)
        self._loop = asyncio.get_running_loop()
        request: _Request[Item, Result] = _Request(
            items=items,
            tokens=tokens,
            submitted_s=time.monotonic(),
            done=self._loop.create_future(),
            waiting_tokens=total,
        )
        self._open.add(request)
        self._waiting.append(request)
        self._waiting_tokens += total
        self._start_batch()
        try:
            return await request.done
        finally:
            self._forget(request)

    def warm_up(self, items: Sequence[Item], tokens: Sequence[int]) -> None:
        """Runs a first batch for its effects and for a first measure of the rate. Waits; not for the event loop."""
        started_s = time.monotonic()
        self._worker.submit(self._run, items).result()
        self._measure_rate(sum(tokens), time.monotonic() - started_s)

    def close(self) -> None:
        """Takes in nothing more, and refuses what waits; a batch that runs is finished. May be called in any thread."""
        self._is_closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._refuse_waiting)

    def _refuse_waiting(self) -> None:
        for request in self._open:
            if not request.is_over:
                request.done.set_exception(_refuse_closed())

    def _check_room(self, tokens: int) -> None:
        if self._is_closed:
            raise _refuse_closed()
        limit = self._options.max_queued_tokens
        if tokens > limit:
            raise RequestTooLarge(
                f"the request has {tokens} tokens, the queue holds {limit}", "send the texts in several requests"
            )
        if self.queued_tokens + tokens > limit:
            raise Overloaded(
                f"{self.queued_tokens} of {limit} tokens are waiting, and the request has {tokens}",
                "ask again later, or run more replicas",
                retry_after_s=self._estimate_wait_s(tokens),
            )

    def _estimate_wait_s(self, tokens: int) -> float:
        """When there will be room for so many tokens, at the measured rate."""
        excess = self.queued_tokens + tokens - self._options.max_queued_tokens
        return min(MAX_RETRY_AFTER_S, max(1.0, excess / self._tokens_per_s)) if self._tokens_per_s else 1.0

    def _forget(self, request: _Request[Item, Result]) -> None:
        # It may still stand in the queue, where it is passed over; what it holds is free at once.
        self._open.discard(request)
        self._waiting_tokens -= request.waiting_tokens
        request.waiting_tokens = 0
        request.done.cancel()

    def _start_batch(self) -> None:
        places = [] if self._is_busy else self._pick()
        if not places:
            return
        self._is_busy = True
        started = time.monotonic()
        items = [place.request.items[place.index] for place in places]
        try:
            running = asyncio.get_running_loop().run_in_executor(self._worker, _run_batch, self._run, items)
        except RuntimeError:  # closed by another thread a moment ago
            self._refuse_waiting()
            return
        running.add_done_callback(lambda finished: self._end_batch(places, started, finished))

    def _pick(self) -> list[_Place[Item, Result]]:
        """The next batch: one item of each waiting request in turn, until the budget is used up."""
        places: list[_Place[Item, Result]] = []
        used = 0
        while self._waiting:
            request = self._waiting[0]
            if request.is_over:
                self._waiting.popleft()
                continue
            tokens = request.tokens[request.num_picked]
            if places and used + tokens > self._options.batch_tokens:
                break
            self._waiting.popleft()
            places.append(_Place(request, request.num_picked))
            used += tokens
            request.num_picked += 1
            request.waiting_tokens -= tokens
            self._waiting_tokens -= tokens
            if request.num_picked < len(request.items):
                self._waiting.append(request)
        return places

    def _end_batch(
        self,
        places: Sequence[_Place[Item, Result]],
        started_s: float,
        finished: asyncio.Future[list[Result | Exception]],
    ) -> None:
        self._is_busy = False
        if finished.cancelled():  # closed before it began, which its requests are told
            return
        error = finished.exception()  # the worker thread itself could not be started
        results = [error] * len(places) if isinstance(error, Exception) else finished.result()
        for place, result in zip(places, results, strict=True):
            request = place.request
            request.results[place.index] = result
            if len(request.results) == len(request.items) and not request.is_over:
                request.done.set_result([request.results[index] for index in range(len(request.items))])
        self._start_batch()
        self._note(places, started_s)

    def _note(self, places: Sequence[_Place[Item, Result]], started_s: float) -> None:
        ran_s = time.monotonic() - started_s
        tokens = sum(place.request.tokens[place.index] for place in places)
        self._measure_rate(tokens, ran_s)
        if self._on_batch is not None:
            waits_s = [started_s - place.request.submitted_s for place in places]
            self._on_batch(BatchRecord(tokens=tokens, waits_s=waits_s, ran_s=ran_s))

    def _measure_rate(self, tokens: int, ran_s: float) -> None:
        rate = tokens / max(ran_s, 1e-6)
        share = _NEW_SHARE if self._tokens_per_s else 1.0
        self._tokens_per_s += share * (rate - self._tokens_per_s)


def _run_batch(run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result | Exception]:
    """Results in order; where the batch fails, each item is run alone, so that only the one at fault has an error."""
    try:
        results: list[Result | Exception] = list(run(items))
        assert len(results) == len(items)
        return results
    except Exception as error:  # the edge of the worker thread: whatever it is, it belongs to a request
        if len(items) == 1:
            return [error]
    return [_run_batch(run, [item])[0] for item in items]


def _refuse_closed() -> ServiceUnavailable:
    return ServiceUnavailable(
        "the endpoint is shutting down", "ask again: another replica, or the next start, will answer", retry_after_s=1.0
    )
