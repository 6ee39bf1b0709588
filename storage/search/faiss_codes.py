"""Candidates by the dot of codes, and centroids, from faiss. The only module that knows faiss.

Its quantiser of signed bytes keeps the codes as they are and takes them times a query of bytes in integers, exactly: a
query that is not one of bytes is cut down without a word, so it is given its codes and nothing else.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestream.storage.codec import Int8Array

ITERATIONS: Final = 10


def has_faiss() -> bool:
    """Whether faiss is installed (the extra ``search``)."""
    return find_spec("faiss") is not None


class FaissCodes:
    """Codes int8 [N, D] under faiss. Immutable; safe for many threads."""

    def __init__(self, codes: Int8Array) -> None:
        import faiss

        library: Any = faiss  # its own types know no arrays
        dim = codes.shape[1]
        self._index = library.IndexScalarQuantizer(
            dim, library.ScalarQuantizer.QT_8bit_direct_signed, library.METRIC_INNER_PRODUCT
        )
        self._index.add_sa_codes(np.ascontiguousarray(codes).view(np.uint8) ^ np.uint8(0x80))
        data = library.rev_swig_ptr(self._index.codes.data(), len(codes) * dim)
        self._data: NDArray[np.uint8] = data.reshape(len(codes), dim)

    def take(self, rows: Any) -> Int8Array:
        """The codes of some rows."""
        return np.asarray(self._data[rows] ^ np.uint8(0x80)).view(np.int8)

    def find(
        self, query_codes: NDArray[np.float32], limit: int, wanted: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows with the largest dots, best first, and the dots.

        Args:
            query_codes: float32 [D], whole numbers from -127 to 127.
            limit: number of rows.
            wanted: a bit a row, lowest first; None wants all.
        """
        import faiss

        library: Any = faiss  # as above
        params = None
        if wanted is not None:
            params = library.SearchParameters(sel=library.IDSelectorBitmap(wanted))
        dots, rows = self._index.search(query_codes[None, :], limit, params=params)
        found = rows[0] >= 0
        return rows[0][found], dots[0][found].astype(np.float64)


def train_centroids(sample: NDArray[np.float32], num_cells: int, *, seed: int) -> NDArray[np.float32]:
    """The middles of ``num_cells`` groups of the unit vectors ``sample`` [N, D], by spherical k-means on one thread.

    Cost: ITERATIONS x N x num_cells x D multiplications; N is not cut down here.
    """
    import faiss

    library: Any = faiss  # as above
    library.omp_set_num_threads(1)  # of the calling thread alone: requests want the other cores
    means = library.Kmeans(
        sample.shape[1],
        num_cells,
        niter=ITERATIONS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample),
    )
    means.train(sample)
    return np.asarray(means.centroids, np.float32)


def find_centroids(vectors: NDArray[np.float32], centroids: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ``count`` centroids with the largest dot, best first, int64 [N, count]."""
    import faiss

    library: Any = faiss  # as above
    _, found = library.knn(vectors, centroids, count, metric=library.METRIC_INNER_PRODUCT)
    return np.asarray(found, np.int64)
