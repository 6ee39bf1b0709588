"""Cuts chosen by content: where something too long is divided, so that an insertion moves few of the cuts.

A run that exceeds its limit is cut at the candidate with the smallest hash of what stands around it, then each part
again, until all fit. Counting from the top would move every later cut when a line is inserted above; the smallest hash
stays the smallest unless the edit happens beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.integer[Any]]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_DISCOURAGED: Final = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Places where a cut is allowed: ``positions`` int64 [K], increasing, with their ``hashes`` uint64 [K]."""

    positions: npt.NDArray[np.int64]
    hashes: UInt64Array


def mix_bits(values: UInt64Array) -> UInt64Array:
    """Well mixed 64 bits for each value.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
    """
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def hash_runs(values: IntArray, starts: IntArray) -> UInt64Array:
    """A hash of each run of values; equal runs have equal hashes wherever they stand.

    Args:
        values: [T] non-negative integers below 2**32.
        starts: [R] first index of each run, increasing; a run reaches to the next one's start, the last to T.

    Returns:
        uint64 [R].
    """
    if not len(starts):
        return np.zeros(0, np.uint64)
    lengths = np.diff(starts, append=len(values))
    places = np.arange(len(values), dtype=np.uint64) - np.repeat(starts.astype(np.uint64), lengths)
    mixed = mix_bits((values.astype(np.uint64) << np.uint64(32)) ^ places)
    return mix_bits(np.add.reduceat(mixed, starts.astype(np.int64)))


def hash_neighbours(run_hashes: UInt64Array) -> UInt64Array:
    """A hash for each border between two neighbouring runs, of both: uint64 [R - 1] for R runs."""
    return mix_bits(run_hashes[:-1] * _GOLDEN ^ run_hashes[1:])


def hash_windows(values: IntArray, width: int) -> UInt64Array:
    """A hash for each border between two values, of up to ``width`` values on both sides: uint64 [T - 1]."""
    mixed = mix_bits(values.astype(np.uint64))
    padded = np.concatenate([np.zeros(width, np.uint64), mixed, np.zeros(width, np.uint64)])
    count = max(len(values) - 1, 0)
    total = np.zeros(count, np.uint64)
    for i in range(2 * width):
        total = mix_bits(total ^ padded[i + 1 : i + 1 + count])
    return total


def discourage(hashes: UInt64Array, where: npt.NDArray[np.bool_]) -> UInt64Array:
    """Hashes with which the candidates ``where`` are taken only if there is no other."""
    lowered = hashes >> np.uint64(1)
    return np.where(where, lowered | _DISCOURAGED, lowered)


def choose_cuts(start: int, end: int, limit: int, tiers: Sequence[Candidates]) -> list[int]:
    """Cuts after which no part of ``start:end`` is longer than ``limit``, as far as the candidates allow.

    Args:
        start, end: the run.
        limit: greatest length of a part.
        tiers: candidates from best to worst; a tier is used only inside parts that the tiers before left too long.

    Returns:
        Positions strictly between start and end, increasing. Parts shorter than a quarter of the limit appear only
        where no other candidate was left.

    Cost:
        O(K log K) for K candidates, unless their hashes are in order.
    """
    cuts = [start, end]
    for tier in tiers:
        found = [cut for a, b in pairwise(cuts) if b - a > limit for cut in _choose_within(a, b, limit, tier)]
        if found:
            cuts = sorted((*cuts, *found))
    return cuts[1:-1]


def _choose_within(start: int, end: int, limit: int, tier: Candidates) -> list[int]:
    positions, hashes = tier.positions, tier.hashes
    margin = max(limit // 4, 1)
    cuts: list[int] = []
    open_parts = [(start, end)]
    while open_parts:
        low, high = open_parts.pop()
        if high - low <= limit:
            continue
        first, last = np.searchsorted(positions, (low + margin, high - margin + 1))
        if first >= last:
            first, last = np.searchsorted(positions, (low + 1, high))
        if first >= last:
            continue
        cut = int(positions[first + _least(hashes[first:last])])
        cuts.append(cut)
        open_parts += [(low, cut), (cut, high)]
    return cuts


def _least(hashes: UInt64Array) -> int:
    """Index of the smallest hash; of several equal ones the middle one, or runs of equal lines would cut one by one."""
    at = int(hashes.argmin())
    same = np.flatnonzero(hashes == hashes[at])
    return int(same[len(same) // 2])
