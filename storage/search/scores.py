"""The one score of a stored row and a query, and how the best of many rows are found.

A score is the cosine of the codes and the query in float64, computed row by row in the same order: equal rows have
equal scores, bit by bit, wherever they stand. What is fast and less exact only picks candidates, with its error allowed
for, so that a scan, blocks of numpy and blocks of faiss give the same rows in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lodestream.storage.codec import Int8Array

_FLOAT32_ERROR = 2.0**-23


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query in the forms that searches want.

    ``vector``  float32 [D], unit length
    ``codes``   the nearest int8 codes, as float32 [D]: vector is about codes x step
    ``step``    their scale
    ``error``   length of vector - codes x step: no cosine with a unit vector is further off
    """

    vector: NDArray[np.float32]
    codes: NDArray[np.float32]
    step: float
    error: float

    @classmethod
    def of(cls, vector: NDArray[np.float32]) -> Query:
        """A query for a vector of any length but 0."""
        wide = vector.astype(np.float64)
        wide /= np.linalg.norm(wide)
        step = float(np.abs(wide).max()) / 127
        codes = np.rint(wide / step)
        return cls(
            vector=np.ascontiguousarray(wide, np.float32),
            codes=np.ascontiguousarray(codes, np.float32),
            step=step,
            error=float(np.linalg.norm(wide - codes * step)) + 1e-7,
        )


def score_rows(codes: Int8Array, query: Query) -> NDArray[np.float64]:
    """The cosine of each row of codes int8 [N, D] and the query, float64 [N]; 0 for a row of zeros."""
    wide = np.ascontiguousarray(codes, np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    dots = (wide * query.vector.astype(np.float64)).sum(axis=1)
    return np.asarray(dots / np.where(lengths > 0, lengths, 1.0))


def find_best(
    codes: Int8Array, query: Query, limit: int, *, floor: float = -np.inf
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows with the ``limit`` best scores, and all that tie with the last of them.

    Args:
        codes: int8 [N, D].
        query: what is looked for.
        limit: number of rows, at least 1.
        floor: rows with lower scores are not wanted.

    Returns:
        Rows int64 and their scores, in no order.
    """
    if not len(codes):
        return np.zeros(0, np.int64), np.zeros(0)
    narrow = codes.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", narrow, narrow))
    about = (narrow @ query.vector) / np.where(lengths > 0, lengths, np.float32(1))
    # Both sums are off by D roundings at most, and unit vectors' products sum to 1 at most.
    margin = 4 * codes.shape[1] * _FLOAT32_ERROR
    least = max(floor, cut(about, limit)) - margin
    rows = np.flatnonzero(about >= least)
    scores = score_rows(codes[rows], query)
    kept = scores >= max(floor, cut(scores, limit))
    return rows[kept], scores[kept]


def cut(scores: NDArray[np.floating], limit: int) -> float:
    """The ``limit``-th best score; minus infinity where there are fewer."""
    if len(scores) < limit:
        return -np.inf
    return float(np.partition(scores, len(scores) - limit)[len(scores) - limit])
