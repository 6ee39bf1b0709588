"""How much of what an exact search finds is found in a few cells: measured on the index itself, and by it decided how
many cells a search looks into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.storage.search.index import Filters, Found, VectorIndex

HITS: Final = 10
FIRST_CELLS: Final = 4
MAX_SHARE: Final = 8
"""One cell in so many is looked into at most: beyond that an exact search is as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Recall of the ten best.

    ``num_cells``    how many cells were looked into
    ``of_rows``      mean over stored rows, each the query for its neighbours
    ``of_queries``   mean over queries that callers asked; None without any
    ``num_rows, num_queries``  how many of either
    """

    num_cells: int
    of_rows: float
    of_queries: float | None
    num_rows: int
    num_queries: int

    @property
    def worst(self) -> float:
        """The lower of the two means."""
        return self.of_rows if self.of_queries is None else min(self.of_rows, self.of_queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A query, the row that it is of, if any, and the scores of its exact answer, best first."""

    vector: NDArray[np.float32]
    row: tuple[str, int] | None
    exact: Sequence[float]


def tune(
    index: VectorIndex,
    granularity: str,
    *,
    num_rows: int,
    queries: Sequence[NDArray[np.float32]],
    least: float,
    seed: int,
) -> Recall:
    """Recall with as few cells as reach ``least``; with one in MAX_SHARE where none do.

    Args:
        index: its granularity has cells.
        num_rows: how many stored rows are asked for their neighbours.
        queries: float32 [D] each, not of zero length.
        least: recall that is wanted, in [0, 1].
        seed: chooses the rows.

    Cost: one exact search for each query, and the same queries once for each number of cells that is tried.
    """
    codes, names = index.sample(granularity, num_rows, seed=seed)
    held_out = [(row.astype(np.float32), name) for row, name in zip(codes, names, strict=True) if row.any()]
    filters = Filters(granularity=granularity)
    asked = [
        _Asked(vector=vector, row=row, exact=_score(index.search(vector, limit=HITS + 1, filters=filters), row))
        for vector, row in [*held_out, *((query, None) for query in queries)]
    ]
    most = max(1, len(index.centroids[granularity]) // MAX_SHARE)
    num_cells = min(FIRST_CELLS, most)
    while True:
        recall = _measure(index, filters, asked, num_cells)
        if recall.worst >= least or num_cells == most:
            return recall
        num_cells = min(2 * num_cells, most)


def _measure(index: VectorIndex, filters: Filters, asked: Sequence[_Asked], num_cells: int) -> Recall:
    shares: dict[bool, list[float]] = {True: [], False: []}
    for one in asked:
        found, _ = index.search_cells(one.vector, limit=HITS + 1, filters=filters, num_cells=num_cells)
        # Of rows with the same score any will do: so scores are compared, and no names.
        kept = [score for score in _score(found, one.row) if one.exact and score >= one.exact[-1]]
        shares[one.row is not None].append(len(kept) / max(1, len(one.exact)) if one.exact else 1.0)
    return Recall(
        num_cells=num_cells,
        of_rows=float(np.mean(shares[True])) if shares[True] else 1.0,
        of_queries=float(np.mean(shares[False])) if shares[False] else None,
        num_rows=len(shares[True]),
        num_queries=len(shares[False]),
    )


def _score(found: Sequence[Found], row: tuple[str, int] | None) -> list[float]:
    """Scores of the best, without the row that was asked for its neighbours."""
    return [span.score for span in found if (span.doc_id, span.ordinal) != row][:HITS]
