"""Search through an index in memory of each snapshot that is served, made from the one before it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lodestream.pipeline.search import describe_hits, search_snapshot
from lodestream.pipeline.serve.approximation import Approximation
from lodestream.pipeline.serve.parts import Nearest
from lodestream.pipeline.serve.span_texts import SpanTexts
from lodestream.pipeline.sizes import format_size
from lodestream.schema import Granularity
from lodestream.storage.catalog import Catalog
from lodestream.storage.search.index import ROW_BYTES, Filters, VectorIndex
from lodestream.storage.store import Snapshot

_LOG = logging.getLogger(__name__)


class IndexSearcher:
    """A searcher with an index. A snapshot without one, older or too large, is scanned: the same hits, more slowly.

    An index of many rows is searched in cells, once their recall is measured and good enough: most of the same hits.
    """

    def __init__(
        self,
        find_catalog: Callable[[Snapshot], Catalog],
        *,
        max_bytes: int,
        text_bytes: int = 0,
        approximate_above: int = 0,
        min_recall: float = 1.0,
    ) -> None:
        """Make it without an index.

        Args:
            find_catalog: gives the documents of a snapshot that is about to be served.
            max_bytes: memory of the rows of one index at most.
            text_bytes: memory of the texts of spans that were found, at most.
            approximate_above, min_recall: see approximation.Approximation.
        """
        self._find_catalog = find_catalog
        self._max_bytes = max_bytes
        self._texts = SpanTexts(text_bytes)
        self._served: dict[int, tuple[Snapshot, VectorIndex]] = {}
        self._lock = threading.Lock()
        self._searches = {"index": 0, "approximate": 0, "scan": 0}
        self._approximation = Approximation(
            self._find_newest, self._swap, above=approximate_above, min_recall=min_recall
        )

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
            self._texts.advance(before, snapshot, None)
            return
        catalog = self._find_catalog(snapshot)
        while True:
            known = self._find(before) if before is not None and before.dim == snapshot.dim else None
            index = known.advance(snapshot, catalog) if known is not None else VectorIndex.load(snapshot, catalog)
            with self._lock:
                # What went into cells meanwhile must not be lost: then the update, which is short, is made again.
                if known is None or before is None or self._find(before) is known:
                    self._served[snapshot.sequence] = (snapshot, index)
                    break
        is_told = known is not None and self._texts.num_bytes > 0
        self._texts.advance(before, snapshot, catalog.find_changed(known.catalog) if known and is_told else None)
        self._approximation.wake()

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
        exact: bool,
    ) -> Nearest:
        """See parts.Searcher."""
        filters = Filters(granularity=granularity, min_density=min_density, headings=headings, doc_prefix=doc_prefix)
        index = self._find(snapshot)
        if index is None:
            self._count("scan")
            return Nearest(hits=search_snapshot(snapshot, query_D, limit=limit, **asdict(filters)), is_exact=True)
        num_cells = None if exact else self._approximation.choose(index, granularity)
        self._approximation.note_query(granularity, query_D)
        if num_cells is None:
            spans, is_exact = index.search(query_D, limit=limit, filters=filters), True
        else:
            spans, is_exact = index.search_cells(query_D, limit=limit, filters=filters, num_cells=num_cells)
        self._count("index" if is_exact else "approximate")
        found = [asdict(span) for span in spans]
        texts = self._texts.get(snapshot, found)
        hits = describe_hits([(span.pop("score"), span) for span in found], texts)
        return Nearest(hits=hits, is_exact=is_exact)

    def forget_texts(self) -> None:
        """Gives up the texts in memory, after a purge of documents."""
        self._texts.clear()

    def describe_recall(self) -> Mapping[str, Mapping[str, Any]]:
        """See parts.Searcher."""
        return self._approximation.describe()

    def wait(self, timeout_s: float) -> bool:
        """Whether the cells of the newest index are ready, or found not to be wanted, within a time."""
        return self._approximation.wait(timeout_s)

    def close(self) -> None:
        """See parts.Searcher."""
        self._approximation.close()

    def count(self) -> Mapping[str, int]:
        """Searches so far by index, by its cells, and by scan; rows and bytes of the newest index; bytes of texts."""
        with self._lock:
            newest = max(self._served.items(), default=None, key=lambda item: item[0])
            held = {"rows": 0, "bytes": 0}
            if newest is not None:
                held = {"rows": newest[1][1].num_rows, "bytes": newest[1][1].nbytes}
            return {**self._searches, **held, "text_bytes": self._texts.num_bytes}

    def _count(self, how: str) -> None:
        with self._lock:
            self._searches[how] += 1

    def _find_newest(self) -> VectorIndex | None:
        served = dict(self._served)  # at once: another thread may add one
        return served[max(served)][1] if served else None

    def _swap(self, before: VectorIndex, after: VectorIndex) -> bool:
        with self._lock:
            newest = max(self._served, default=None)
            if newest is None or self._served[newest][1] is not before:
                return False
            self._served[newest] = (self._served[newest][0], after)
            return True

    def _find(self, snapshot: Snapshot) -> VectorIndex | None:
        served = self._served.get(snapshot.sequence)
        return served[1] if served is not None and served[0].tables == snapshot.tables else None
