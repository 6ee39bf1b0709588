"""Cells for the indexes that are too large to be searched row by row in time, readied beside the searches.

A thread of its own trains centroids, puts the newest index's rows into cells, and asks a sample of queries both ways.
Until recall is known, and wherever it is too low, searches are exact. A publish keeps the cells: changed rows go into
those that there are. They are trained again once half of the rows came since.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestream.schema import GRANULARITIES
from lodestream.storage.search.cells import Centroids
from lodestream.storage.search.faiss_codes import has_faiss
from lodestream.storage.search.index import VectorIndex
from lodestream.storage.search.recall import MAX_SHARE, Recall, tune

MAX_QUERIES: Final = 16
"""Vectors of recent queries that are kept for measuring, of each granularity."""
ASKED_ROWS: Final = 48
RETRAIN_SHARE: Final = 0.5
MEASURE_SHARE: Final = 0.05
"""Recall is measured again once this share of the rows came since."""

_NICENESS: Final = 10
_CLOSE_S: Final = 2.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """A recall, of which centroids, and the first number of documents that came later."""

    centroids: Centroids
    recall: Recall
    since: int


class Approximation:
    """Decides for each granularity whether a search may be approximate, and how. Safe for many threads."""

    def __init__(
        self,
        find_newest: Callable[[], VectorIndex | None],
        swap: Callable[[VectorIndex, VectorIndex], bool],
        *,
        above: int,
        min_recall: float,
    ) -> None:
        """Begin without cells.

        Args:
            find_newest: gives the index of the latest snapshot.
            swap: puts the second in the place of the first, unless that is no longer the newest.
            above: granularities with more rows are searched approximately; 0: none.
            min_recall: where recall is lower, the search is exact.
        """
        self._find_newest = find_newest
        self._swap = swap
        self._above = above
        self._min_recall = min_recall
        self._measured: dict[str, _Measured] = {}
        self._failures: dict[str, str] = {}
        self._queries: dict[str, deque[NDArray[np.float32]]] = {
            granularity: deque(maxlen=MAX_QUERIES) for granularity in GRANULARITIES
        }
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def choose(self, index: VectorIndex, granularity: str) -> int | None:
        """How many cells a search of an index looks into; None: it is exact."""
        known = self._measured.get(granularity)
        if known is None or index.centroids.get(granularity) is not known.centroids:
            return None
        if not self._is_large(index, granularity) or known.recall.worst < self._min_recall:
            return None
        return known.recall.num_cells

    def note_query(self, granularity: str, query_D: NDArray[np.float32]) -> None:
        """Keeps a query that was asked, in memory, to measure with."""
        if self._above:
            self._queries[granularity].append(query_D)

    def wake(self) -> None:
        """There is another newest index: does in the background what it needs."""
        with self._lock:
            index = self._find_newest()
            if self._is_stopped or self._thread is not None or index is None:
                return
            self._failures.clear()
            if self._find_work(index) is not None:
                self._thread = threading.Thread(target=self._work, name="lodestream-cells", daemon=True)
                self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether all is done within a time."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def close(self) -> None:
        """Ends the thread after the step that it is at, and waits for that no longer than a moment."""
        self._is_stopped = True
        self.wait(_CLOSE_S)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Of each granularity of the newest index that is large enough: cells, recall, and why it is exact if it is."""
        index = self._find_newest()
        if index is None:
            return {}
        return {name: self._describe(index, name) for name in GRANULARITIES if self._is_large(index, name)}

    def _describe(self, index: VectorIndex, granularity: str) -> dict[str, Any]:
        known, centroids = self._measured.get(granularity), index.centroids.get(granularity)
        values: dict[str, Any] = {
            "rows": index.count_rows(granularity),
            "approximate": self.choose(index, granularity) is not None,
            "cells": 0 if centroids is None else len(centroids),
            "reason": self._failures.get(granularity, ""),
        }
        if known is None or known.centroids is not centroids:
            return values | {"reason": values["reason"] or "cells are being made; until then search is exact"}
        recall = known.recall
        if recall.worst < self._min_recall:
            values["reason"] = (
                f"search is exact: with one cell in {MAX_SHARE} recall is {recall.worst:.3f}, "
                f"less than serve.min_recall = {self._min_recall:g}"
            )
        return values | {
            "cells_searched": recall.num_cells,
            "recall": round(recall.worst, 4),
            "recall_of_rows": round(recall.of_rows, 4),
            "recall_of_queries": None if recall.of_queries is None else round(recall.of_queries, 4),
            "rows_asked": recall.num_rows,
            "queries_asked": recall.num_queries,
        }

    def _is_large(self, index: VectorIndex, granularity: str) -> bool:
        return 0 < self._above < index.count_rows(granularity)

    # ---- in the background -----------------------------------------------------------------------------------------

    def _find_work(self, index: VectorIndex) -> tuple[Callable[[str], None], str] | None:
        for granularity in GRANULARITIES:
            if not self._is_large(index, granularity) or granularity in self._failures:
                continue
            if not has_faiss():
                self._failures[granularity] = "search is exact: faiss is missing; pip install 'lodestream[search]'"
                continue
            num_rows = index.count_rows(granularity)
            centroids, known = index.centroids.get(granularity), self._measured.get(granularity)
            if centroids is None or index.count_rows(granularity, since=centroids.since) > RETRAIN_SHARE * num_rows:
                return self._divide, granularity
            if known is None or known.centroids is not centroids:
                return self._measure, granularity
            if index.count_rows(granularity, since=known.since) > MEASURE_SHARE * num_rows:
                return self._measure, granularity
        return None

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._lock:
                index = self._find_newest()
                work = None if self._is_stopped or index is None else self._find_work(index)
                if work is None:
                    self._thread = None
                    return
            do, granularity = work
            try:
                do(granularity)
            except Exception as error:  # the thread's edge: searches go on, exactly
                _LOG.exception("the cells of %ss cannot be made", granularity)
                self._failures[granularity] = f"search is exact: no cells: {type(error).__name__}: {error}"

    def _divide(self, granularity: str) -> None:
        index = self._find_newest()
        if index is None:
            return
        centroids = index.train(granularity)
        known: dict[int, Any] = {}
        while index is not None and not self._is_stopped:
            if self._swap(index, index.divide(granularity, centroids, known)):
                return
            index = self._find_newest()

    def _measure(self, granularity: str) -> None:
        index = self._find_newest()
        if index is None or granularity not in index.centroids:
            return
        recall = tune(
            index,
            granularity,
            num_rows=ASKED_ROWS,
            queries=list(self._queries[granularity]),
            least=self._min_recall,
            seed=1,
        )
        self._measured[granularity] = _Measured(
            centroids=index.centroids[granularity], recall=recall, since=index.next_number
        )
        _LOG.info("search of %ss: %d cells looked into, recall %.3f", granularity, recall.num_cells, recall.worst)
