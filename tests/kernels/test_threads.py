"""A thread's own number of threads, and heads shared among threads: each once, whatever fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lodestream.kernels.threads import share_heads, use_threads


@pytest.fixture(params=[1, 2, 5])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_heads", [1, 3, 40])
def test_every_head_is_done_once_and_threads_stay_as_they_were(num_threads: int, num_heads: int) -> None:
    done: list[int] = []
    share_heads(done.extend, num_heads)
    assert sorted(done) == list(range(num_heads))
    assert torch.get_num_threads() == num_threads


def test_operators_in_the_threads_have_one_thread(num_threads: int) -> None:
    seen: list[int] = []

    def work(heads: Iterator[int]) -> None:
        for _ in heads:
            seen.append(torch.get_num_threads())

    share_heads(work, 8)
    assert seen == [1] * 8


def test_inference_mode_holds_in_the_threads(num_threads: int) -> None:
    with torch.inference_mode():
        made = torch.zeros(8)

        def work(heads: Iterator[int]) -> None:
            for head in heads:
                made[head] += head  # an error outside of inference mode

        share_heads(work, 8)
    assert made.tolist() == list(range(8))


def test_an_error_reaches_the_caller_and_the_next_call_works(num_threads: int) -> None:
    def work(heads: Iterator[int]) -> None:
        for head in heads:
            if head == 2:
                raise ArithmeticError("head 2")

    with pytest.raises(ArithmeticError, match="head 2"):
        share_heads(work, 4)
    done: list[int] = []
    share_heads(done.extend, 4)
    assert sorted(done) == [0, 1, 2, 3]


def test_a_thread_keeps_its_own_number(num_threads: int) -> None:
    with ThreadPoolExecutor(1, initializer=use_threads, initargs=(3,)) as pool:
        pool.submit(int).result()
        torch.set_num_threads(num_threads)
        assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == num_threads


def test_several_threads_may_share_heads_at_once(num_threads: int) -> None:
    def share() -> list[int]:
        use_threads(num_threads)
        done: list[int] = []
        for _ in range(20):
            share_heads(done.extend, 7)
        return done

    with ThreadPoolExecutor(4) as pool:
        for call in [pool.submit(share) for _ in range(4)]:
            assert sorted(call.result()) == sorted(list(range(7)) * 20)


def test_no_more_heads_are_under_way_than_may_be(num_threads: int) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(min(2, num_threads), timeout=60)

    def work(heads: Iterator[int]) -> None:
        nonlocal under_way, most
        for head in heads:
            with lock:
                under_way += 1
                most = max(most, under_way)
            if head < together.parties:  # the first ones wait for each other: so many are under way at once
                together.wait()
            with lock:
                under_way -= 1

    share_heads(work, 6, most_at_once=2)
    assert most == min(2, num_threads)


def test_a_forked_child_has_pools_of_its_own() -> None:
    code = (
        "import os, torch\n"
        "from lodestream.kernels import threads\n"
        "torch.set_num_threads(2); threads.share_heads(list, 4)\n"
        "assert threads._pools\n"
        "child = os.fork()\n"
        "if not child: os._exit(bool(threads._pools))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "0", done.stderr
