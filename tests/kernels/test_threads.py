"""A thread's own number of threads, and heads shared among threads: each once, whatever fails."""

from __future__ import annotations

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
