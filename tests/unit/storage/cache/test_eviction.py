"""What the policy holds: never more than its budget, and at least as useful as LRU and LFU on traces of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.storage.cache.eviction import Eviction
from tests.support.cache_baselines import Lfu, Lru, Ours, hit_rate
from tests.support.cache_traces import Trace, scan_trace, shifting_trace, zipf_trace

SMALL = {"num_names": 2000, "length": 20_000}
TRACES = {
    "zipf": lambda: zipf_trace(**SMALL),
    "zipf + scan": lambda: scan_trace(every=4000, scan=2000, **SMALL),
    "shifting": lambda: shifting_trace(**SMALL),
}


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize("kind", TRACES)
def test_hit_rate_is_at_least_that_of_lru_and_of_lfu(kind: str, share: float) -> None:
    trace: Trace = TRACES[kind]()
    budget = int(share * len(set(trace)))
    ours, lru, lfu = (hit_rate(make, budget, trace) for make in (Ours, Lru, Lfu))
    assert ours >= max(lru, lfu), f"{ours:.4f} against {lru:.4f} and {lfu:.4f}"


def test_a_scan_does_not_drive_out_what_is_used() -> None:
    eviction = Eviction(100)
    hot = [b"hot %d" % number for number in range(50)]
    for _ in range(3):
        for key in hot:
            if not eviction.use(key):
                eviction.admit(key, 1)
    for number in range(1000):
        eviction.admit(b"scan %d" % number, 1)
        if number % 20 == 0:
            for key in hot:
                if not eviction.use(key):
                    eviction.admit(key, 1)
    assert sum(key in eviction for key in hot) >= 45


@given(
    budget=st.integers(0, 50),
    uses=st.lists(st.tuples(st.sampled_from(["admit", "use", "remove"]), st.integers(0, 12), st.integers(1, 30))),
)
def test_the_budget_holds_and_dropped_names_are_told(budget: int, uses: list[tuple[str, int, int]]) -> None:
    eviction = Eviction(budget)
    held: dict[bytes, int] = {}
    for action, number, size in uses:
        key = b"%d" % number
        if action == "admit" and key not in held:
            held[key] = size
            for dropped in eviction.admit(key, size):
                del held[dropped]
        elif action == "use":
            assert eviction.use(key) == (key in held)
        elif action == "remove":
            eviction.remove(key)
            held.pop(key, None)
        assert eviction.held_bytes == sum(held.values()) <= budget
        assert len(eviction) == len(held)
        assert all(key in eviction for key in held)


def test_a_name_that_is_held_is_not_admitted_twice() -> None:
    eviction = Eviction(10)
    eviction.admit(b"a", 1)
    with pytest.raises(ValueError, match="held already"):
        eviction.admit(b"a", 1)


def test_what_is_larger_than_the_budget_is_refused_and_drives_nothing_out() -> None:
    eviction = Eviction(10)
    eviction.admit(b"a", 10)
    assert eviction.admit(b"b", 11) == [b"b"]
    assert b"a" in eviction
