"""Numbers for Prometheus and for the status page. Labels have few values: routes, methods, statuses, tiers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lodestream.pipeline.serve.notes import Notes
from lodestream.pipeline.serve.service import Service

WINDOW_S: Final = 60.0
_MAX_SAMPLES: Final = 20_000
_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of the requests of the last minute, the probes, the page and what it asks for left out."""

    num_requests: int
    per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Metrics:
    """Counts of one server. Safe for many threads."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lodestream_requests", "Requests answered.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "lodestream_request_seconds", "Time to answer.", ("route",), buckets=_BUCKETS, registry=self._registry
        )
        self._registry.register(_ServiceCollector(service))
        self._window: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def observe(self, route: str, method: str, status: int, notes: Notes) -> None:
        """Counts a request; ``status`` 0 is one that was never answered."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        elapsed_s = notes.elapsed_s
        self._seconds.labels(route).observe(elapsed_s)
        if route.startswith("/v1/") and route not in ("/v1/status", "/v1/snapshots"):
            with self._lock:
                self._window.append((time.monotonic(), elapsed_s))

    def measure_latency(self) -> Latency:
        """Rate and percentiles of the last minute."""
        now = time.monotonic()
        with self._lock:
            while self._window and self._window[0][0] < now - WINDOW_S:
                self._window.popleft()
            times = sorted(elapsed_s for _, elapsed_s in self._window)
        span_s = max(1.0, min(WINDOW_S, now - self._started))

        def percentile(share: float) -> float | None:
            return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 2) if times else None

        return Latency(
            num_requests=len(times),
            per_second=round(len(times) / span_s, 2),
            p50_ms=percentile(0.5),
            p95_ms=percentile(0.95),
            p99_ms=percentile(0.99),
        )

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    """What is read off the service when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        service = self._service
        view = service.follower.latest
        yield GaugeMetricFamily(
            "lodestream_degraded",
            "1 while the published pointer cannot be followed.",
            int(bool(service.follower.trouble)),
        )
        if view is not None:
            yield GaugeMetricFamily("lodestream_snapshot", "Number of the snapshot served.", view.record.sequence)
            yield GaugeMetricFamily(
                "lodestream_freshness_seconds",
                "Age of what is served, against its sources.",
                service.follower.freshness_s(view),
            )
        found = CounterMetricFamily("lodestream_rows_found", "Documents found, by tier.", labels=["tier"])
        for tier, number in service.rows.count().items():
            found.add_metric([tier], number)
        yield found
        searches = CounterMetricFamily("lodestream_searches", "Searches, by index, its cells, or scan.", labels=["how"])
        counts = service.searcher.count()
        for how in ("index", "approximate", "scan"):
            searches.add_metric([how], counts[how])
        yield searches
        yield GaugeMetricFamily("lodestream_index_rows", "Rows of the index in memory.", counts["rows"])
        yield GaugeMetricFamily("lodestream_index_bytes", "Bytes of the index in memory.", counts["bytes"])
        yield GaugeMetricFamily("lodestream_span_text_bytes", "Bytes of texts of hits held.", counts["text_bytes"])
        yield from _collect_recall(service.searcher.describe_recall())
        yield from _collect_cache({} if service.cache is None else service.cache.count())
        encoding = service.encoding
        if encoding is None:
            return
        counts = encoding.count()
        yield GaugeMetricFamily("lodestream_encode_waiting", "Requests before the encoder.", counts["waiting"])
        tokens = CounterMetricFamily("lodestream_tokens", "Tokens of requests, encoded or known.", labels=["how"])
        tokens.add_metric(["encoded"], counts["encoded_tokens"])
        tokens.add_metric(["known"], counts["known_tokens"])
        yield tokens
        yield from _collect_batches(counts)


def _collect_batches(counts: Mapping[str, int]) -> Iterator[Metric]:
    """Of the micro-batches. Segments by batches is how many share one; seconds by segments is how long one waits."""
    yield GaugeMetricFamily("lodestream_encode_queued_tokens", "Tokens before the encoder.", counts["queued_tokens"])
    for name, help_text in (
        ("batches", "Batches encoded."),
        ("batch_segments", "Segments in them."),
        ("batch_tokens", "Tokens in them."),
    ):
        yield CounterMetricFamily(f"lodestream_encode_{name}", help_text, counts[name])
    for name, help_text in (("wait", "Time that segments waited."), ("run", "Time that batches took.")):
        yield CounterMetricFamily(f"lodestream_encode_{name}_seconds", help_text, counts[f"{name}_ms"] / 1000)


def _collect_recall(granularities: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Of approximate search; granularities that are always searched exactly have none."""
    recall = GaugeMetricFamily("lodestream_search_recall", "Measured share of the ten nearest.", labels=["granularity"])
    is_used = GaugeMetricFamily(
        "lodestream_search_approximate", "1 while searches are approximate.", labels=["granularity"]
    )
    for granularity, values in granularities.items():
        if "recall" in values:
            recall.add_metric([granularity], values["recall"])
        is_used.add_metric([granularity], int(values["approximate"]))
    yield from (recall, is_used)


def _collect_cache(counts: Mapping[str, Any]) -> Iterator[Metric]:
    """Of every class in memory, and of the disk: look-ups, entries that went, and what is held."""
    looks = CounterMetricFamily("lodestream_cache_lookups", "Look-ups.", labels=["tier", "class", "result"])
    evictions = CounterMetricFamily("lodestream_cache_evictions", "Entries that went.", labels=["tier", "class"])
    entries = GaugeMetricFamily("lodestream_cache_entries", "Entries held.", labels=["tier", "class"])
    held = GaugeMetricFamily("lodestream_cache_bytes", "Bytes held.", labels=["tier", "class"])
    tiers = [("memory", kind, of_kind) for kind, of_kind in counts.get("memory", {}).items()]
    if counts.get("disk"):
        tiers.append(("disk", "all", counts["disk"]))
    for tier, kind, of_kind in tiers:
        for result, name in (("hit", "hits"), ("miss", "misses")):
            looks.add_metric([tier, kind, result], of_kind[name])
        evictions.add_metric([tier, kind], of_kind["evictions"])
        entries.add_metric([tier, kind], of_kind["entries"])
        held.add_metric([tier, kind], of_kind["held_bytes"])
    yield from (looks, evictions, entries, held)
