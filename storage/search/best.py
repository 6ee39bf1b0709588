"""The best rows of several blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.storage.search.blocks import Block
from lodestream.storage.search.scores import Query, find_best

_SCANNED_ROWS: Final = 1 << 12


class Best:
    """The best rows so far, with all that tie with the last."""

    def __init__(self, limit: int) -> None:
        """Begin without rows; ``limit`` of them are wanted."""
        self.limit = limit
        self.floor = -np.inf
        self._items: list[tuple[float, Block, int]] = []

    def add(self, block: Block, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Take rows of a block with their scores."""
        self._items += [(score, block, row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]
        if len(self._items) >= self.limit:
            self.floor = sorted((score for score, _, _ in self._items), reverse=True)[self.limit - 1]
            self._items = [item for item in self._items if item[0] >= self.floor]

    def items(self) -> list[tuple[float, Block, int]]:
        """Score, block and row of each, in no order."""
        return self._items


def find_among(chosen: Sequence[tuple[Block, NDArray[np.int64]]], query: Query, limit: int) -> Best:
    """The best of some rows of each block. Rows of many blocks are looked at together: most give a few only."""
    best = Best(limit)
    waiting: list[tuple[Block, NDArray[np.int64]]] = []
    num_waiting = 0
    for block, rows in chosen:
        for start in range(0, len(rows), _SCANNED_ROWS):
            waiting.append((block, rows[start : start + _SCANNED_ROWS]))
            num_waiting += len(waiting[-1][1])
            if num_waiting >= _SCANNED_ROWS:
                _look(waiting, query, best)
                waiting, num_waiting = [], 0
    if waiting:
        _look(waiting, query, best)
    return best


def _look(parts: Sequence[tuple[Block, NDArray[np.int64]]], query: Query, best: Best) -> None:
    codes = np.concatenate([block.take_codes(rows) for block, rows in parts])
    found, scores = find_best(codes, query, best.limit, floor=best.floor)
    starts = np.cumsum([0, *(len(rows) for _, rows in parts)])
    owners = np.searchsorted(starts, found, side="right") - 1
    for owner in np.unique(owners).tolist():
        block, rows = parts[owner]
        mine = owners == owner
        best.add(block, rows[found[mine] - starts[owner]], scores[mine])
