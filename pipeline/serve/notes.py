"""What is noted while a request is answered, and told in its headers."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

NOTES: Final = "lodestream.notes"
"""Where they are in the request's scope."""

_ID_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_MAX_ID_CHARS: Final = 128


@dataclass(slots=True, kw_only=True)
class Notes:
    """One request's notes. ``snapshot`` and ``freshness_s`` are set when a snapshot was pinned; ``spans_ms`` are the
    times of its parts, which add up to less than its whole time. ``tiers``: documents found in each tier."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    snapshot: int | None = None
    freshness_s: float | None = None
    spans_ms: dict[str, float] = field(default_factory=dict)
    tiers: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the time that the context lasts to the span ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spans_ms[name] = self.spans_ms.get(name, 0.0) + (time.perf_counter() - started) * 1000

    @property
    def elapsed_s(self) -> float:
        """Since the request came in."""
        return time.perf_counter() - self.started

    def headers(self) -> list[tuple[bytes, bytes]]:
        """X-Request-Id, Server-Timing and, where a snapshot was read, X-Snapshot and X-Freshness-Seconds."""
        spans = {**self.spans_ms, "total": self.elapsed_s * 1000}
        timing = ", ".join(f"{name};dur={ms:.2f}" for name, ms in spans.items())
        timing += "".join(f', {tier};desc="{number}"' for tier, number in sorted(self.tiers.items()))
        headers = [(b"x-request-id", self.request_id.encode()), (b"server-timing", timing.encode())]
        if self.snapshot is not None:
            headers.append((b"x-snapshot", str(self.snapshot).encode()))
        if self.freshness_s is not None:
            headers.append((b"x-freshness-seconds", f"{self.freshness_s:.1f}".encode()))
        return headers


def take_request_id(given: str) -> str:
    """The caller's id where it is a harmless one, else a new one."""
    if given and len(given) <= _MAX_ID_CHARS and _ID_CHARS.issuperset(given):
        return given
    return secrets.token_hex(8)
