"""Cells of rows that are about alike: a search that looks into the nearest cells alone leaves most rows alone.

A cell is what is nearer to its centroid than to any other. Every row has the number of its cell beside its codes, so
cells change nothing of how rows lie in blocks, are filtered, die or are scored: they only say which rows are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.storage.codec import Int8Array
from lodestream.storage.search.faiss_codes import find_centroids, train_centroids

POINTS_A_CELL: Final = 40
"""Rows of the sample that centroids are trained on, for each of them."""
MIN_CELLS: Final = 8
MAX_CELLS: Final = 2048

_SEED: Final = 20_251
_ASSIGNED_ROWS: Final = 1 << 13


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Centroids:
    """Unit vectors that part the rows of one granularity into cells.

    ``vectors``   float32 [K, D]
    ``since``     rows of documents with this number and later ones came after they were trained
    """

    vectors: NDArray[np.float32]
    since: int

    def __len__(self) -> int:
        return len(self.vectors)

    def assign(self, codes: Int8Array) -> NDArray[np.uint16]:
        """The cell of each row of codes int8 [N, D]."""
        cells = np.zeros(len(codes), np.uint16)
        for start in range(0, len(codes), _ASSIGNED_ROWS):
            part = codes[start : start + _ASSIGNED_ROWS].astype(np.float32)
            cells[start : start + _ASSIGNED_ROWS] = find_centroids(part, self.vectors, 1)[:, 0]
        return cells

    def rank(self, query_D: NDArray[np.float32]) -> NDArray[np.int64]:
        """All cells, the nearest to a query first: int64 [K]."""
        return np.asarray(np.argsort(-(self.vectors @ query_D), kind="stable"), np.int64)


class RowsByCell:
    """The rows of a block in the order of their cells, so that those of a few cells are found without a look at all."""

    def __init__(self, cells: NDArray[np.uint16]) -> None:
        """Sort the rows of ``cells`` [N]."""
        order = np.argsort(cells, kind="stable")
        self._rows = order.astype(np.uint16 if len(cells) <= 1 << 16 else np.uint32)
        self._cells, starts = np.unique(cells[order], return_index=True)
        self._starts = np.append(starts, len(cells))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._rows.nbytes + self._cells.nbytes + self._starts.nbytes

    def take(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of some cells, each named once."""
        places = np.searchsorted(self._cells, cells)
        found = places < len(self._cells)
        found[found] = self._cells[places[found]] == cells[found]
        starts, ends = self._starts[places[found]], self._starts[places[found] + 1]
        lengths = ends - starts
        begins = np.cumsum(lengths) - lengths
        where = np.arange(lengths.sum()) + np.repeat(starts - begins, lengths)
        return np.asarray(self._rows[where], np.int64)


def count_cells(num_rows: int) -> int:
    """How many cells so many rows get: about as many as each of them has rows."""
    return int(np.clip(round(np.sqrt(num_rows)), MIN_CELLS, MAX_CELLS))


def train(sample: Int8Array, *, num_cells: int, since: int) -> Centroids:
    """Centroids by a sample of the codes, int8 [N, D] with N >= num_cells. The same sample gives the same centroids.

    Cost: ITERATIONS x N x num_cells x D multiplications, 4 x N x D bytes.
    """
    vectors = sample.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, np.float32(1))
    return Centroids(vectors=train_centroids(vectors, num_cells, seed=_SEED), since=since)
