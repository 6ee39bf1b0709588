"""Batches of concurrent requests: who waits for whom, what is refused, what is dropped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.actors.micro_batcher import BatcherOptions, BatchRecord, MicroBatcher
from lodestream.errors import Overloaded, RequestTooLarge, ServiceUnavailable

T = TypeVar("T")


class Doubler:
    """Doubles numbers, fails on negative ones, and waits in each batch until ``gate`` is open."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.records: list[BatchRecord] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.running.set()
        assert self.gate.wait(60)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]

    async def is_running(self) -> None:
        """Waits until a batch has begun."""
        await asyncio.to_thread(self.running.wait, 60)


def run(main: Callable[[MicroBatcher[int, int], Doubler], Awaitable[T]], **options: int) -> T:
    """``main`` with a batcher over a Doubler."""

    async def body() -> T:
        doubler = Doubler()
        batcher = MicroBatcher(doubler, BatcherOptions(**options), on_batch=doubler.records.append)
        try:
            return await main(batcher, doubler)
        finally:
            doubler.gate.set()
            batcher.close()

    return asyncio.run(body())


def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(coroutine)


async def settle() -> None:
    """Lets every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_idle_starts_at_once_and_busy_gathers() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        doubler.gate.clear()
        first = start(batcher.submit([1], [10]))
        await doubler.is_running()
        others = [start(batcher.submit([n], [10])) for n in range(2, 7)]
        await settle()
        assert (batcher.queued_tokens, batcher.num_requests) == (50, 6)
        doubler.gate.set()
        assert [await task for task in (first, *others)] == [[2 * n] for n in range(1, 7)]
        assert doubler.batches == [[1], [2, 3, 4], [5, 6]]
        assert (batcher.queued_tokens, batcher.num_requests) == (0, 0)

    run(main, batch_tokens=30)


def test_one_question_is_in_the_next_batch_of_a_thousand() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        doubler.gate.clear()
        bulk = start(batcher.submit(range(1000), [10] * 1000))
        await doubler.is_running()
        question = start(batcher.submit([7777], [10]))
        await settle()
        doubler.gate.set()
        assert await question == [15554]
        assert 7777 in doubler.batches[1] and not bulk.done()
        assert await bulk == [2 * n for n in range(1000)]

    run(main, batch_tokens=100)


def test_an_item_longer_than_a_batch_is_run_alone() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        assert await batcher.submit([1, 2, 3], [5, 500, 5]) == [2, 4, 6]
        assert doubler.batches == [[1], [2], [3]]

    run(main, batch_tokens=8)


def test_a_failing_item_fails_alone() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        doubler.gate.clear()
        first = start(batcher.submit([0], [1]))
        await doubler.is_running()
        good, bad = start(batcher.submit([4], [1])), start(batcher.submit([5, -1, 6], [1, 1, 1]))
        await settle()
        doubler.gate.set()
        assert await first == [0] and await good == [8]
        before, error, after = await bad
        assert (before, after) == (10, 12) and isinstance(error, ValueError)
        assert await batcher.submit([9], [1]) == [18]

    run(main)


def test_who_has_gone_is_not_run_for() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        doubler.gate.clear()
        first = start(batcher.submit([1, 2], [10, 10]))
        await doubler.is_running()
        gone, stays = start(batcher.submit([3, 4], [10, 10])), start(batcher.submit([5], [10]))
        await settle()
        assert batcher.queued_tokens == 40
        gone.cancel()
        first.cancel()
        await asyncio.gather(gone, first, return_exceptions=True)
        assert (batcher.queued_tokens, batcher.num_requests) == (10, 1)
        doubler.gate.set()
        assert await stays == [10]
        assert doubler.batches == [[1], [5]]

    run(main, batch_tokens=10)


def test_a_deadline_is_a_cancellation() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        doubler.gate.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batcher.submit([1], [1])
        assert batcher.num_requests == 0

    run(main)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        with pytest.raises(RequestTooLarge, match="101 tokens, the queue holds 100"):
            await batcher.submit([1], [101])
        batcher.warm_up([1], [50])
        assert batcher.tokens_per_s > 0
        doubler.running.clear()
        doubler.gate.clear()
        running = start(batcher.submit([1], [100]))
        await doubler.is_running()
        waiting = start(batcher.submit([2], [60]))
        await settle()
        with batcher.reserve(30):
            assert batcher.queued_tokens == 90
            with pytest.raises(Overloaded) as refused:
                await batcher.submit([3], [11])
        assert 1 <= refused.value.retry_after_s <= 60
        doubler.gate.set()
        assert await batcher.submit([3], [11]) == [6]
        assert await running == [2] and await waiting == [4]

    run(main, max_queued_tokens=100)


def test_the_time_to_come_back_is_the_excess_at_the_measured_rate() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> float:
        batcher._measure_rate(1000, 10.0)
        doubler.gate.clear()
        running = start(batcher.submit([1], [1]))
        await doubler.is_running()
        waiting = start(batcher.submit([2], [2000]))
        await settle()
        try:
            await batcher.submit([3], [700])
        except Overloaded as refused:
            return refused.retry_after_s
        finally:
            for task in (running, waiting):
                task.cancel()
        raise AssertionError("there was room")

    assert run(main, max_queued_tokens=2000) == pytest.approx(7.0)


def test_closing_refuses_what_waits_and_what_comes() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        doubler.gate.clear()
        running = start(batcher.submit([1], [1]))
        await doubler.is_running()
        waiting = start(batcher.submit([2], [1]))
        await settle()
        await asyncio.to_thread(batcher.close)
        doubler.gate.set()
        for task in (running, waiting):
            with pytest.raises(ServiceUnavailable):
                await task
        with pytest.raises(ServiceUnavailable):
            await batcher.submit([3], [1])
        assert doubler.batches == [[1]]

    run(main)


def test_batches_are_reported() -> None:
    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        await batcher.submit([1, 2, 3], [10, 10, 10])
        await settle()
        assert [record.tokens for record in doubler.records] == [20, 10]
        assert [len(record.waits_s) for record in doubler.records] == [2, 1]
        assert all(record.ran_s >= 0 and min(record.waits_s) >= 0 for record in doubler.records)

    run(main, batch_tokens=20)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(-3, 50), st.integers(1, 12)), max_size=6),  # (item, tokens)
        st.integers(0, 3),  # turns of the loop before it comes
        st.none() | st.integers(0, 6),  # turns after which it goes away
    ),
    max_size=12,
)


@given(requests=REQUESTS, batch_tokens=st.integers(1, 25))
def test_everyone_who_waits_gets_his_own_results(
    requests: list[tuple[list[tuple[int, int]], int, int | None]], batch_tokens: int
) -> None:
    """Whatever comes and goes when: right answers, budgets kept, nothing run twice but after a failure, and an empty
    queue at the end."""

    async def main(batcher: MicroBatcher[int, int], doubler: Doubler) -> None:
        tasks = []
        for items, before, _ in requests:
            for _ in range(before):
                await asyncio.sleep(0)
            tasks.append(start(batcher.submit([item for item, _ in items], [tokens for _, tokens in items])))
        for turn in range(7):
            for task, (_, _, leaves) in zip(tasks, requests, strict=True):
                if leaves == turn:
                    task.cancel()
            await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for answer, (items, _, leaves) in zip(answers, requests, strict=True):
            if isinstance(answer, asyncio.CancelledError):
                assert leaves is not None
                continue
            assert not isinstance(answer, BaseException)
            for found, (item, _) in zip(answer, items, strict=True):
                assert isinstance(found, ValueError) if item < 0 else found == 2 * item
        assert (batcher.queued_tokens, batcher.num_requests) == (0, 0)
        assert all(record.tokens <= batch_tokens or len(record.waits_s) == 1 for record in doubler.records)
        num_wanted = sum(len(items) for items, _, _ in requests)
        assert sum(len(batch) for batch in doubler.batches if min(batch) >= 0) <= num_wanted

    run(main, batch_tokens=batch_tokens)
