"""Plots of the status page as inline SVG. Colours are classes of the page's style, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup, escape

_WIDTH: Final = 640
_TREND_HEIGHT: Final = 96
_BARS_HEIGHT: Final = 96
_GAP: Final = 2


def plot_trend(points: Sequence[float | None], *, target_s: float | None) -> Markup:
    """A line of the points, oldest first, with gaps where nothing is known, under the line of the target."""
    known = [point for point in points if point is not None]
    top = max([*known, target_s or 0.0, 1.0]) * 1.1
    step = _WIDTH / max(len(points) - 1, 1)

    def place(value: float) -> float:
        return round(_TREND_HEIGHT - value / top * _TREND_HEIGHT, 1)

    parts = []
    for run in _find_runs(points):
        first, last = run[0][0] * step, run[-1][0] * step
        line = " ".join(f"{index * step:.1f},{place(value)}" for index, value in run)
        if len(run) == 1:
            parts.append(
                Markup('<circle class="dot" cx="{}" cy="{}" r="2"/>').format(round(first, 1), place(run[0][1]))
            )
            continue
        area = f"{first:.1f},{_TREND_HEIGHT} {line} {last:.1f},{_TREND_HEIGHT}"
        parts.append(
            Markup('<polygon class="area" points="{}"/><polyline class="line" points="{}"/>').format(area, line)
        )
    if target_s:
        parts.append(
            Markup('<line class="target" x1="0" x2="{}" y1="{y}" y2="{y}"/>').format(_WIDTH, y=place(target_s))
        )
    label = f"freshness over 24 hours, up to {max(known):.0f} seconds" if known else "freshness: nothing known yet"
    return _frame(parts, height=_TREND_HEIGHT, label=label)


def plot_histogram(bins: Sequence[int], *, threshold: float) -> Markup:
    """Bars from 0 to 1; those below the threshold in another colour."""
    largest = max([*bins, 1])
    width = _WIDTH / len(bins)
    parts = []
    for index, number in enumerate(bins):
        height = round(number / largest * (_BARS_HEIGHT - 4), 1)
        kind = "dense" if (index + 0.5) / len(bins) >= threshold else "sparse"
        title = f"density {index / len(bins):.2f} to {(index + 1) / len(bins):.2f}: {number:,} tokens"
        parts.append(_bar(index * width, height, width - _GAP, kind, title))
    x = round(threshold * _WIDTH, 1)
    parts.append(Markup('<line class="target" x1="{x}" x2="{x}" y1="0" y2="{}"/>').format(_BARS_HEIGHT, x=x))
    return _frame(parts, height=_BARS_HEIGHT, label="tokens by density")


def plot_runs(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """The last runs along the time: a bar for each, as high as it took long, and darker where it encoded something."""
    if not runs:
        return Markup("")
    ends = [datetime.fromisoformat(run["ended_at"]).timestamp() for run in runs]
    begin = min(end - run["seconds"] for end, run in zip(ends, runs, strict=True))
    span = max(max(ends) - begin, 1.0)
    longest = max(0.1, *(run["seconds"] for run in runs))
    parts = []
    for end, run in zip(ends, runs, strict=True):
        width = max(run["seconds"] / span * _WIDTH, 5.0)
        x = max(0.0, (end - begin) / span * _WIDTH - width)
        height = max(round(run["seconds"] / longest * (_BARS_HEIGHT - 4), 1), 3.0)
        documents = ", ".join(f"{number} {name}" for name, number in run["documents"].items())
        title = f"{run['run_id']}, {run['ended_at'][:19]} UTC: {run['seconds']:.1f} s, {documents}"
        parts.append(_bar(x, height, width, "dense" if run["segments_encoded"] else "sparse", title))
    return _frame(parts, height=_BARS_HEIGHT, label=f"the last {len(runs)} runs")


def plot_shares(shares: Mapping[str, float]) -> Markup:
    """One bar, cut into named shares."""
    total = sum(shares.values())
    if not total:
        return Markup("")
    parts, x = [], 0.0
    for index, (name, number) in enumerate(shares.items()):
        width = number / total * _WIDTH
        title = f"{name}: {number / total:.1%}"
        parts.append(
            Markup('<rect class="share{}" x="{:.1f}" y="0" width="{:.1f}" height="18"><title>{}</title></rect>').format(
                index, x, max(width - _GAP, 0.5) if width else 0, title
            )
        )
        x += width
    return _frame(parts, height=18, label=", ".join(f"{name} {number / total:.0%}" for name, number in shares.items()))


def _bar(x: float, height: float, width: float, kind: str, title: str) -> Markup:
    return Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" rx="1"><title>{}</title></rect>'
    ).format(kind, x, _BARS_HEIGHT - height, max(width, 1.0), height, title)


def _frame(parts: Sequence[Markup], *, height: int, label: str) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}" style="height:{}px">{}</svg>'
    ).format(_WIDTH, height, escape(label), height, Markup("").join(parts))


def _find_runs(points: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = []
    for index, point in enumerate(points):
        if point is None:
            continue
        if not runs or runs[-1][-1][0] != index - 1:
            runs.append([])
        runs[-1].append((index, point))
    return runs
