"""Measured errors counted by size: what runs add up and print, without torch.

Counts of parts add up to the counts of the whole. A percentile is the upper end of its bin, at most 9 % too large; what
is below 2 ** SMALLEST_EXPONENT counts as that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BINS_PER_DOUBLING: Final = 8
SMALLEST_EXPONENT: Final = -20
NUM_BINS: Final = 24 * BINS_PER_DOUBLING


def summarise_bins(counts: Sequence[int]) -> tuple[float, float]:
    """(mean, 99th percentile) of what was counted in NUM_BINS bins; zeros where nothing was."""
    total = sum(counts)
    if not total:
        return 0.0, 0.0
    # Within a bin the errors lie, on average, near its middle.
    middles = [2.0 ** ((place - 0.5) / BINS_PER_DOUBLING + SMALLEST_EXPONENT) for place in range(len(counts))]
    mean = sum(number * middle for number, middle in zip(counts, middles, strict=True)) / total
    wanted, seen, tail = -(-99 * total // 100), 0, 0
    for place, number in enumerate(counts):
        seen += number
        if seen >= wanted:
            tail = place
            break
    return mean, float(2.0 ** (tail / BINS_PER_DOUBLING + SMALLEST_EXPONENT))


def add_bins(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[list[int]]:
    """Counts by layer of both; a side without layers has counted nothing."""
    if not one or not other:
        return [list(layer) for layer in one or other]
    return [[a + b for a, b in zip(mine, theirs, strict=True)] for mine, theirs in zip(one, other, strict=True)]
