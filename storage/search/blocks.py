"""Rows of one granularity as blocks of codes with what filters and answers need. A block never changes.

A large block holds rows whose codes have about the same length, so that the dot of codes bounds the cosine closely: the
best by dot are taken as candidates until no other row can be among the best by score. A small one is looked at row by
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.storage.codec import Int8Array
from lodestream.storage.search.cells import RowsByCell
from lodestream.storage.search.faiss_codes import FaissCodes, has_faiss
from lodestream.storage.search.scores import Query, cut, find_best, score_rows

BLOCK_ROWS: Final = 1 << 15
LENGTH_RATIO: Final = 1.02
"""Lengths within a class differ by this factor at most."""
MIN_FAISS_ROWS: Final = 1 << 7

_MORE_CANDIDATES: Final = 16
_GROWTH: Final = 4
_ROUNDING: Final = 1e-6
_SCANNED_ROWS: Final = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is known of N rows besides their codes.

    ``docs``       int32, numbers of documents
    ``ordinals, starts, ends``  int32
    ``densities``  float16
    ``kinds``      uint8, places in KINDS
    ``cells``      uint16, which of the index's cells of the granularity; 0 while it has none
    """

    docs: NDArray[np.int32]
    ordinals: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    densities: NDArray[np.float16]
    kinds: NDArray[np.uint8]
    cells: NDArray[np.uint16]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return Rows(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of ``parts``, in order; at least one part."""
        return cls(**{item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)})

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(getattr(self, item.name).nbytes for item in fields(self))


class Block:
    """Codes with their rows. Immutable; safe for many threads."""

    def __init__(self, codes: Int8Array, rows: Rows, *, length_class: int | None = None) -> None:
        """Keep them.

        Args:
            codes: int8 [N, D].
            rows: the N rows.
            length_class: of all the codes' lengths; None where they are mixed.
        """
        self.rows = rows
        self.length_class = length_class
        is_large = length_class is not None and len(codes) >= MIN_FAISS_ROWS and has_faiss()
        self._faiss = FaissCodes(codes) if is_large else None
        self._codes = None if is_large else codes
        self._by_cell: RowsByCell | None = None
        # float16 lengths would do; these are read once a search.
        self._shortest, self._longest = bound_lengths(length_class) if length_class is not None else (0.0, np.inf)

    def __len__(self) -> int:
        return len(self.rows.docs)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        dim = int(self.take_codes(slice(0, 1)).shape[1])
        ordered = self._by_cell.nbytes if self._by_cell is not None else 0
        return len(self) * dim + self.rows.nbytes + ordered

    def with_cells(self, cells: NDArray[np.uint16]) -> Block:
        """The same codes, shared, in other cells."""
        twin = copy(self)
        twin.rows = replace(self.rows, cells=cells)
        twin._by_cell = None
        return twin

    def pick(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of some cells."""
        if self._by_cell is None:
            self._by_cell = RowsByCell(self.rows.cells)
        return self._by_cell.take(cells)

    def take_codes(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Int8Array:
        """Codes of some rows."""
        if self._faiss is not None:
            return self._faiss.take(rows)
        assert self._codes is not None
        return self._codes[rows]

    def find(
        self, query: Query, limit: int, wanted: NDArray[np.bool_] | None, *, floor: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The rows with the ``limit`` best scores among those wanted, and all that tie with the last of them.

        Args:
            query: what is looked for.
            limit: number of rows.
            wanted: a truth value a row; None wants all.
            floor: rows with lower scores are not wanted.

        Returns:
            Rows and their scores, in no order.
        """
        if self._faiss is None:
            return self._scan(query, limit, wanted, floor)
        num_wanted = len(self) if wanted is None else int(np.count_nonzero(wanted))
        bits = None if wanted is None else np.packbits(wanted, bitorder="little")
        num_candidates = limit + _MORE_CANDIDATES
        while num_candidates < min(num_wanted, len(self) // _GROWTH):
            rows, dots = self._faiss.find(query.codes, num_candidates, bits)
            scores = score_rows(self._faiss.take(rows), query)
            least = max(floor, cut(scores, limit))
            if self._bound(float(dots[-1]), query) < least:
                kept = scores >= least
                return rows[kept], scores[kept]
            num_candidates *= _GROWTH
        return self._scan(query, limit, wanted, floor)

    def _bound(self, dot: float, query: Query) -> float:
        """No row whose dot is ``dot`` or less has a score above this."""
        length = self._shortest if dot > 0 else self._longest
        return query.step * dot / length + query.error + _ROUNDING

    def _scan(
        self, query: Query, limit: int, wanted: NDArray[np.bool_] | None, floor: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        chosen = np.arange(len(self)) if wanted is None else np.flatnonzero(wanted)
        found_rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        found_scores: list[NDArray[np.float64]] = [np.zeros(0)]
        for start in range(0, len(chosen), _SCANNED_ROWS):
            part = chosen[start : start + _SCANNED_ROWS]
            rows, scores = find_best(self.take_codes(part), query, limit, floor=floor)
            found_rows.append(part[rows])
            found_scores.append(scores)
        rows, scores = np.concatenate(found_rows), np.concatenate(found_scores)
        kept = scores >= cut(scores, limit)
        return rows[kept], scores[kept]


def classify_lengths(codes: Int8Array) -> NDArray[np.int64]:
    """The class of each row's length, int64 [N]; rows of zeros are with the shortest."""
    narrow = codes.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", narrow, narrow))
    return np.asarray(np.floor(np.log(np.maximum(lengths, 1.0)) / np.log(LENGTH_RATIO)), np.int64)


def bound_lengths(length_class: int) -> tuple[float, float]:
    """The shortest and the longest length of a class, with the rounding of ``classify_lengths`` allowed for."""
    return LENGTH_RATIO**length_class * (1 - 1e-5), LENGTH_RATIO ** (length_class + 1) * (1 + 1e-5)


def seal(codes: Int8Array, rows: Rows) -> list[Block]:
    """Blocks of rows by their length, BLOCK_ROWS at most each."""
    classes = classify_lengths(codes)
    blocks = []
    for length_class in np.unique(classes).tolist():
        chosen = np.flatnonzero(classes == length_class)
        for start in range(0, len(chosen), BLOCK_ROWS):
            part = chosen[start : start + BLOCK_ROWS]
            blocks.append(Block(codes[part], rows.take(part), length_class=length_class))
    return blocks
