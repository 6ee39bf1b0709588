"""How many threads operators take: set for one thread alone, and heads side by side, each with operators of one thread.

What sparse attention does for a head is many short operators. Split among torch's own threads each of them would wait
for all of these twice, which takes about as long as the operator.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final

import torch

_START_LIMIT_S: Final = 60.0
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def use_threads(number: int) -> None:
    """Operators that the calling thread calls from now on take so many threads, whatever other threads set later.

    ``torch.set_num_threads`` alone does not do that: in a thread that has called no operator yet the number is
    replaced, at the first one, by the last that any thread has set. Threads that are started later begin with this
    number, as they do after that call.
    """
    torch.get_num_threads()  # from here on the thread has a number of its own
    torch.set_num_threads(number)


def share_heads(work: Callable[[Iterator[int]], None], num_heads: int, *, most_at_once: int | None = None) -> None:
    """Calls ``work`` once in each of as many threads as torch has here; together the calls get every head once.

    Args:
        work: does what is to be done for the heads that the iterator gives it. What it does for one must not depend on
            any other: which thread gets which is not determined. Inference mode holds in it as it does here.
        num_heads: H; there are no more threads than heads. Where that leaves one, ``work`` is called in this thread,
            and its operators take the threads that they take here.
        most_at_once: heads that may be under way at once, for their memory; as many as there are threads where None.

    Raises:
        whatever ``work`` raises, once all threads have stopped.
    """
    heads = iter(range(num_heads))
    num_threads = min(torch.get_num_threads(), num_heads, most_at_once or num_heads)
    if num_threads < 2:
        work(heads)
        return
    inference = torch.is_inference_mode_enabled()

    def run() -> None:
        with torch.inference_mode(inference):
            work(heads)

    pool = _find_pool(num_threads)
    calls = [pool.submit(run) for _ in range(num_threads)]
    try:
        wait(calls)
    except BaseException:
        for _ in heads:  # none is begun any more
            pass
        wait(calls)
        raise
    for call in calls:
        call.result()


def _find_pool(num_threads: int) -> ThreadPoolExecutor:
    with _lock:
        if num_threads not in _pools:
            before = torch.get_num_threads()
            everyone = threading.Barrier(num_threads + 1, timeout=_START_LIMIT_S)
            pool = ThreadPoolExecutor(num_threads, thread_name_prefix="lodestream-heads")
            try:
                for _ in range(num_threads):
                    pool.submit(_start_thread, everyone)
                everyone.wait()
            except BaseException:
                everyone.abort()
                pool.shutdown(wait=False)
                raise
            finally:
                torch.set_num_threads(before)  # what threads begin with that are started from now on
            _pools[num_threads] = pool
        return _pools[num_threads]


def _start_thread(everyone: threading.Barrier) -> None:
    use_threads(1)
    everyone.wait()


os.register_at_fork(after_in_child=_pools.clear)  # a child has none of their threads
