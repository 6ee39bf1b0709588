"""Durations as people write them: ``5m``, ``1h30m``, ``90s``, ``1d``."""

from __future__ import annotations

import re
from typing import Final

_SECONDS_PER_UNIT: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)\s*", re.ASCII)
_MAX_S: Final = 10_000 * 86400


def parse_duration(text: str) -> float:
    """Seconds meant by ``text``: numbers, each with one of ms, s, m, h, d.

    Raises:
        ValueError: ``text`` is no such duration, or is longer than 10,000 days.
    """
    rest = text.strip().lower()
    seconds = 0.0
    at = 0
    while at < len(rest):
        match = _PART.match(rest, at)
        if match is None:
            break
        seconds += float(match[1]) * _SECONDS_PER_UNIT[match[2]]
        at = match.end()
    if not rest or at < len(rest):
        raise ValueError(f'must be a duration such as "5m", "90s" or "1h30m", not {text!r}')
    if seconds > _MAX_S:
        raise ValueError(f"must be at most 10000d, not {text!r}")
    return round(seconds, 3)


def format_duration(seconds: float) -> str:
    """``seconds`` in the largest unit that divides it: ``parse_duration`` of it gives ``seconds`` back."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        per_unit = int(_SECONDS_PER_UNIT[unit] * 1000)
        if milliseconds and milliseconds % per_unit == 0:
            return f"{milliseconds // per_unit}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"
