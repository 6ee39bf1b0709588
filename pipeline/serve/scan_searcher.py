"""Search by a scan over the snapshot's codes: exact, in bounded memory, with nothing to prepare."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lodestream.pipeline.search import Hit, search_snapshot
from lodestream.schema import Granularity
from lodestream.storage.store import Snapshot


class ScanSearcher:
    """A searcher without an index."""

    def prepare(self, snapshot: Snapshot, *, before: Snapshot | None) -> None:
        """A scan needs nothing."""

    def release(self, snapshot: Snapshot) -> None:
        """Nothing is kept."""

    def search(
        self,
        snapshot: Snapshot,
        query_D: NDArray[np.float32],
        *,
        limit: int,
        granularity: Granularity,
        min_density: float | None,
        headings: bool,
        doc_prefix: str | None,
    ) -> list[Hit]:
        """See parts.Searcher."""
        return search_snapshot(
            snapshot,
            query_D,
            limit=limit,
            granularity=granularity,
            min_density=min_density,
            headings=headings,
            doc_prefix=doc_prefix,
        )
