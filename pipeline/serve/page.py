"""The status page: one HTML document with everything in it, made on the server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from lodestream.pipeline.durations import format_duration
from lodestream.pipeline.serve.board import Board
from lodestream.pipeline.serve.plots import plot_histogram, plot_runs, plot_shares, plot_trend

RELOAD_S: Final = 15
_FOLDER: Final = Path(__file__).parent / "templates"
_SHOWN_SNAPSHOTS: Final = 8


def render_page(board: Board) -> bytes:
    """The page as it is now. May ask the store, so not for the event loop."""
    values = board.read_status()
    profile = board.read_profile()
    freshness = values.get("freshness") or {}
    target_s = freshness.get("target_seconds")
    trend = board.read_trend()
    runs = values.get("recent_runs") or []
    tiers = dict(values["serving"]["rows_found"])
    num_missing = tiers.pop("miss")
    page = _template().render(
        values=values,
        serving=values["serving"],
        snapshots=_list_snapshots(values),
        sources=values.get("sources") or [],
        lease=values.get("lease"),
        failure=values.get("failure"),
        staged=values.get("staged"),
        last_run=values.get("last_run"),
        runs=runs,
        profile=profile,
        tiers=tiers,
        num_missing=num_missing,
        hit_share=_find_hit_share(tiers),
        target_s=target_s,
        trend_svg=plot_trend(trend, target_s=target_s),
        trend_worst_s=max((point for point in trend if point is not None), default=None),
        runs_svg=plot_runs(runs),
        density_svg=plot_histogram(profile.density_bins, threshold=profile.threshold) if profile else "",
        tiers_svg=plot_shares(tiers),
        now=datetime.now(UTC),
        reload_s=RELOAD_S,
    )
    return page.encode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ago"] = _say_ago
    environment.filters["seconds"] = _say_seconds
    environment.filters["duration"] = format_duration
    environment.filters["cursor"] = _say_cursor
    return environment.get_template("page.html.jinja")


def _list_snapshots(values: Mapping[str, Any]) -> list[int]:
    snapshot = values.get("snapshot")
    kept: list[int] = snapshot["kept"] if snapshot else []
    return list(reversed(kept))[:_SHOWN_SNAPSHOTS]


def _find_hit_share(tiers: Mapping[str, int]) -> float | None:
    """Share of the documents found that came from a cache; None where none was found yet."""
    total = sum(tiers.values())
    return 1 - tiers["snapshot"] / total if total else None


def _say_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f}s"
    return format_duration(float(round(seconds))) if seconds < 120 else _say_long(seconds)


def _say_long(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}m"
    hours = round(seconds / 3600)
    return f"{hours}h" if hours < 48 else f"{round(hours / 24)}d"


def _say_ago(moment: str | None) -> str:
    if not moment:
        return "never"
    return f"{_say_seconds((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())} ago"


def _say_cursor(cursor: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in cursor.items() if value is not None) or "none"
