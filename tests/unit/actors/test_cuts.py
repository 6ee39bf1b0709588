"""Cuts chosen by content."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.actors.cuts import Candidates, choose_cuts, discourage, hash_neighbours, hash_runs, hash_windows


def test_equal_runs_hash_alike_wherever_they_stand() -> None:
    values = np.array([5, 6, 7, 1, 5, 6, 7, 7, 6, 5], np.int32)
    hashes = hash_runs(values, np.array([0, 3, 4, 7]))
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 3
    windows = hash_windows(np.array([9, 9, 1, 2, 3, 4, 8, 8, 1, 2, 3, 4, 7], np.int32), 2)
    assert windows[3] == windows[9]
    assert windows[2] != windows[3]


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=200),
    limit=st.integers(30, 100),
    num_values=st.integers(1, 5),
)
def test_chosen_cuts_leave_no_part_too_long(sizes: list[int], limit: int, num_values: int) -> None:
    bounds = np.cumsum([0, *sizes])
    hashes = hash_neighbours(hash_runs(np.arange(bounds[-1]) % num_values, bounds[:-1]))
    cuts = choose_cuts(0, int(bounds[-1]), limit, [Candidates(positions=bounds[1:-1], hashes=hashes)])
    assert cuts == sorted(set(cuts) & set(bounds[1:-1].tolist()))
    assert np.diff([0, *cuts, bounds[-1]]).max() <= limit


def test_discouraged_cuts_are_taken_last() -> None:
    hashes = discourage(np.array([1, 2, 3], np.uint64) << np.uint64(50), np.array([True, False, False]))
    assert choose_cuts(0, 40, 30, [Candidates(positions=np.array([10, 20, 30]), hashes=hashes)]) == [20]


def test_an_insertion_moves_few_cuts() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 10**6, 20_000)
    hashes = hash_windows(values, 4)
    before = choose_cuts(0, len(values), 200, [Candidates(positions=np.arange(1, len(values)), hashes=hashes)])
    more = np.insert(values, 5, 7)
    after = choose_cuts(
        0, len(more), 200, [Candidates(positions=np.arange(1, len(more)), hashes=hash_windows(more, 4))]
    )
    assert len(before) > 100
    assert len({cut + 1 for cut in before} - set(after)) <= 5


@pytest.mark.parametrize("num_values", [1, 2, 3])
def test_equal_hashes_take_no_longer(num_values: int) -> None:
    hashes = np.arange(500_000, dtype=np.uint64) % np.uint64(num_values)
    start = time.process_time()
    cuts = choose_cuts(0, 500_001, 200, [Candidates(positions=np.arange(1, 500_001), hashes=hashes)])
    assert time.process_time() - start < 5
    assert np.diff([0, *cuts, 500_001]).max() <= 200
