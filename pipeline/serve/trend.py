"""How fresh what is served was over the last day: the oldest moment of each five minutes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

BUCKET_S: Final = 300
NUM_BUCKETS: Final = 288


class Trend:
    """Freshness by five minutes. What was before the server started is taken from the runs that the store remembers:
    between the ends of two runs what is published grows as old as they lie apart. Not for several threads."""

    def __init__(self) -> None:
        self._worst: dict[int, float] = {}

    def add(self, moment_s: float, freshness_s: float) -> None:
        """Notes a measurement; ``moment_s`` is Unix time."""
        bucket = int(moment_s // BUCKET_S)
        self._worst[bucket] = max(freshness_s, self._worst.get(bucket, 0.0))
        for old in [known for known in self._worst if known <= bucket - NUM_BUCKETS]:
            del self._worst[old]

    def seed(self, runs: Iterable[Mapping[str, Any]], *, until_s: float) -> None:
        """Takes over what the ends of runs tell of the time before ``until_s``."""
        ends = sorted(datetime.fromisoformat(run["ended_at"]).timestamp() for run in runs)
        for before_s, end_s in pairwise(ends):
            first, last = int(before_s // BUCKET_S), int(min(end_s, until_s) // BUCKET_S)
            for bucket in range(max(first, last - NUM_BUCKETS), last + 1):
                worst_s = min(end_s, (bucket + 1) * BUCKET_S) - before_s
                self._worst[bucket] = max(worst_s, self._worst.get(bucket, 0.0))

    def points(self, now_s: float) -> list[float | None]:
        """The last day, oldest first; None where nothing is known."""
        last = int(now_s // BUCKET_S)
        return [self._worst.get(bucket) for bucket in range(last - NUM_BUCKETS + 1, last + 1)]
