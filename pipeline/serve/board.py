"""How store and server are: the status of the command line, what the server adds to it, and whether it is ready."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from lodestream.errors import LodestreamError, StoreNotFound
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.durations import format_duration
from lodestream.pipeline.serve.metrics import Metrics
from lodestream.pipeline.serve.models import Readiness
from lodestream.pipeline.serve.profile import SnapshotProfile, profile_snapshot
from lodestream.pipeline.serve.service import Service
from lodestream.pipeline.serve.trend import Trend
from lodestream.pipeline.status import describe_pointer, read_status

SAMPLE_INTERVAL_S: Final = 5.0
_KEEP_STATUS_S: Final = 1.0
_KEEP_PROFILE_S: Final = 30.0
_NOTHING: Final = "nothing is published yet; next: lodestream run"


class Board:
    """Gathers what the status routes tell. Safe for many threads; what costs is read at most once a second."""

    def __init__(self, loaded: LoadedConfig, service: Service, metrics: Metrics) -> None:
        self._loaded = loaded
        self._service = service
        self._metrics = metrics
        self._trend = Trend()
        self._status_lock = threading.Lock()
        self._profile_lock = threading.Lock()
        self._status: dict[str, Any] = {}
        self._status_until = 0.0
        self._profile: SnapshotProfile | None = None
        self._profile_until = 0.0
        self._started_at = datetime.now(UTC)

    # ---- readiness -------------------------------------------------------------------------------------------------

    def judge_readiness(self) -> Readiness:
        """Whether requests for data will be answered, and why not. Reads nothing."""
        service = self._service
        view, trouble = service.follower.latest, service.follower.trouble
        if service.is_stopping:
            return Readiness(status="stopping", reason="the server is shutting down")
        if view is not None:
            number = view.record.sequence
            reason = self._find_weakness()
            if reason:
                return Readiness(status="degraded", reason=reason, snapshot=number)
            return Readiness(status="ready", reason=f"snapshot {number} is served", snapshot=number)
        if not service.follower.has_looked:
            return Readiness(status="starting", reason="the snapshot and the model are being loaded")
        if trouble is None or isinstance(trouble, StoreNotFound):
            return Readiness(status="empty", reason=_NOTHING)
        return Readiness(status="unavailable", reason=_say(trouble))

    def _find_weakness(self) -> str:
        follower = self._service.follower
        if follower.trouble is not None and follower.latest is not None:
            number = follower.latest.record.sequence
            return f"snapshot {number} is served, but the store cannot be followed: {_say(follower.trouble)}"
        target_s = self._loaded.config.refresh.freshness_target
        if target_s and follower.latest is not None and (lag_s := follower.freshness_s(follower.latest)) > target_s:
            return (
                f"what is served is {lag_s:.0f}s old, more than refresh.freshness_target = {format_duration(target_s)}"
            )
        return ""

    # ---- status ----------------------------------------------------------------------------------------------------

    def read_status(self) -> dict[str, Any]:
        """What ``lodestream status --json`` prints, and ``serving``. May ask the store and the lease's server."""
        with self._status_lock:
            if time.monotonic() >= self._status_until:
                self._status = self._read_store()
                self._status_until = time.monotonic() + _KEEP_STATUS_S
            return self._status | {"serving": self.describe_server()}

    def _read_store(self) -> dict[str, Any]:
        try:
            return read_status(self._loaded).as_dict()
        except LodestreamError as error:
            pointer = self._service.follower.pointer
            trouble = f"the store cannot be read: {_say(error)}"
            if pointer is None:
                return {"health": "degraded", "reason": trouble, "store": self._loaded.store_uri, "snapshot": None}
            return describe_pointer(self._loaded, pointer, trouble=trouble).as_dict()

    def describe_server(self) -> dict[str, Any]:
        """What the server knows of itself. Reads nothing."""
        service = self._service
        view = service.follower.latest
        encoding = service.encoding
        return {
            "readiness": self.judge_readiness().model_dump(),
            "started_at": self._started_at.isoformat(),
            "snapshot": None if view is None else view.record.sequence,
            "freshness_seconds": None if view is None else round(service.follower.freshness_s(view), 1),
            "requests": asdict(self._metrics.measure_latency()),
            "rows_found": dict(service.rows.count()),
            "searches": dict(service.searcher.count()),
            "approximate_search": dict(service.searcher.describe_recall()),
            "cache": {} if service.cache is None else service.cache.count(),
            "encoder": None if encoding is None else dict(encoding.count()),
        }

    # ---- for the page ----------------------------------------------------------------------------------------------

    def read_profile(self) -> SnapshotProfile | None:
        """What the latest snapshot is made of, of half a minute ago at most if there was a later one since."""
        with self._profile_lock:
            view = self._service.follower.latest
            if view is None:
                return None
            known = self._profile
            if known is not None and (known.sequence == view.record.sequence or time.monotonic() < self._profile_until):
                return known
            with self._service.follower.pin() as view:
                self._profile = profile_snapshot(view.snapshot)
            self._profile_until = time.monotonic() + _KEEP_PROFILE_S
            return self._profile

    def read_trend(self) -> list[float | None]:
        """Freshness over the last day by five minutes, oldest first; None where nothing is known."""
        return self._trend.points(time.time())

    async def sample_forever(self) -> None:
        """Notes how fresh what is served is, every few seconds."""
        seeded = False
        while True:
            follower = self._service.follower
            pointer, view = follower.pointer, follower.latest
            if pointer is not None and not seeded:
                self._trend.seed(pointer.run.get("recent", []), until_s=time.time())
                seeded = True
            if view is not None:
                self._trend.add(time.time(), follower.freshness_s(view))
            await asyncio.sleep(SAMPLE_INTERVAL_S)


def _say(error: LodestreamError) -> str:
    return f"{error.message}; next: {error.hint}" if error.hint else error.message
