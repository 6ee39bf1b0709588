"""Search through an index in memory of each snapshot that is served, made from the one before it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from lodestream.pipeline.search import Hit, describe_hits, search_snapshot
from lodestream.pipeline.sizes import format_size
from lodestream.schema import Granularity
from lodestream.storage.catalog import Catalog
from lodestream.storage.search.index import ROW_BYTES, Filters, VectorIndex
from lodestream.storage.store import Snapshot

_LOG = logging.getLogger(__name__)


class IndexSearcher:
    """A searcher with an index. A snapshot without one, older or too large, is scanned: the same hits, more slowly."""

    def __init__(self, find_catalog: Callable[[Snapshot], Catalog], *, max_bytes: int) -> None:
        """Make it without an index.

        Args:
            find_catalog: gives the documents of a snapshot that is about to be served.
            max_bytes: memory of the rows of one index at most.
        """
        self._find_catalog = find_catalog
        self._max_bytes = max_bytes
        self._served: dict[int, tuple[Snapshot, VectorIndex]] = {}
        self._lock = threading.Lock()
        self._searches = {"index": 0, "scan": 0}

    def prepare(self, snapshot: Snapshot, *, before: Snapshot | None) -> None:
        """Makes the index of ``snapshot``: from that of ``before`` where there is one, else by reading all rows."""
        wanted_bytes = snapshot.open_table("features").count() * (snapshot.dim + ROW_BYTES)
        if wanted_bytes > self._max_bytes:
            _LOG.warning(
                "search scans the store: an index of snapshot %d would take %s, serve.index_bytes allows %s",
                snapshot.sequence,
                format_size(wanted_bytes),
                format_size(self._max_bytes),
            )
            return
        catalog = self._find_catalog(snapshot)
        known = self._find(before) if before is not None and before.dim == snapshot.dim else None
        index = known.advance(snapshot, catalog) if known is not None else VectorIndex.load(snapshot, catalog)
        with self._lock:
            self._served[snapshot.sequence] = (snapshot, index)

    def release(self, snapshot: Snapshot) -> None:
        """Its index goes; what a later one shares with it stays."""
        with self._lock:
            served = self._served.get(snapshot.sequence)
            if served is not None and served[0] is snapshot:
                del self._served[snapshot.sequence]

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
        filters = Filters(granularity=granularity, min_density=min_density, headings=headings, doc_prefix=doc_prefix)
        index = self._find(snapshot)
        with self._lock:
            self._searches["scan" if index is None else "index"] += 1
        if index is None:
            return search_snapshot(snapshot, query_D, limit=limit, **asdict(filters))
        found = [asdict(span) for span in index.search(query_D, limit=limit, filters=filters)]
        return describe_hits(snapshot, [(span.pop("score"), span) for span in found])

    def count(self) -> Mapping[str, int]:
        """Searches so far by index and by scan; rows and bytes of the newest index."""
        with self._lock:
            newest = max(self._served.items(), default=None, key=lambda item: item[0])
            held = {"rows": 0, "bytes": 0}
            if newest is not None:
                held = {"rows": newest[1][1].num_rows, "bytes": newest[1][1].nbytes}
            return {**self._searches, **held}

    def _find(self, snapshot: Snapshot) -> VectorIndex | None:
        served = self._served.get(snapshot.sequence)
        return served[1] if served is not None and served[0].tables == snapshot.tables else None
