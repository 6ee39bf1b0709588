"""How the command line prints: JSON objects, one-line summaries, progress; no colours off a terminal."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from lodestream.pipeline.cli.options import INTERRUPTED

if TYPE_CHECKING:
    from lodestream.pipeline.executors import Progress
    from lodestream.pipeline.report import RunReport
    from lodestream.pipeline.search import Hit

_PLAIN_INTERVAL_S: Final = 5.0
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def print_json(value: Any, *, compact: bool = False) -> None:
    """One JSON value on standard output."""
    text = json.dumps(value, ensure_ascii=False, indent=None if compact else 2)
    # Lone surrogates (file names that are no UTF-8) have no encoding: write them as JSON escapes.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def show_line(text: str) -> str:
    """``text`` on one line, control characters as escapes: a file name must not move the cursor."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def tell(text: str) -> None:
    """A note for the person at the terminal; standard output stays for results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def summarise_run(report: RunReport) -> str:
    """The one greppable line that ends a run."""
    values = report.as_dict()
    documents, segments, tokens = values["documents"], values["segments"], values["tokens"]
    parts = [f"{documents['seen']} seen"]
    parts += [f"{documents[name]} {name}" for name in ("changed", "new", "moved", "deleted", "same", "quarantined")]
    if documents["resumed"]:
        parts.append(f"{documents['resumed']} resumed")
    share = _percent(tokens["encoded"], tokens["total"])
    before = "none" if report.snapshot_before is None else report.snapshot_before
    encoded = f"{segments['encoded']} of {segments['total']} segments encoded"
    if segments["total"]:
        sparse = _percent(values["attention"]["tokens"]["sparse"], tokens["encoded"])
        encoded += f" ({share} of tokens, {_percent(tokens['base'], tokens['total'])} base, {sparse} sparse)"
    lag = "" if report.lag_s is None else f" | lag {format_seconds(report.lag_s)}"
    cursors = "".join(f" | {show_cursor(name, source)}" for name, source in values["sources"].items())
    return (
        f"{report.kind} {report.run_id} done in {report.seconds:.1f}s: {', '.join(parts)} | {encoded} | "
        f"snapshot {before} -> {report.snapshot_after}{lag}{cursors}"
    )


def show_cursor(name: str, source: Mapping[str, Any]) -> str:
    """How far a source was read: the time up to which it is proven complete, and what holds that back."""
    watermark = source["watermark"]
    held_back = f" (held back {source['held_back_s']:.1f}s)" if source["held_back_s"] else ""
    if watermark is None:
        return f"cursor {name} {source['mode']}{held_back}"
    moment = datetime.fromisoformat(watermark).astimezone(UTC)
    return f"cursor {name} {moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z{held_back}"


def stage_shares(report: RunReport) -> str:
    """Where the time went, largest first."""
    seconds = report.counts.seconds
    total = sum(seconds.values())
    if not total:
        return ""
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return "stages: " + ", ".join(f"{name} {_percent(value, total)}" for name, value in ordered)


def show_hit(number: int, hit: Hit, *, width: int = 240) -> str:
    """A search hit in two lines."""
    text = show_line(" ".join(hit.text.split()))
    snippet = text if len(text) <= width else text[: width - 3] + "..."
    place = f"{hit.doc_id} [{hit.char_start}:{hit.char_end}]"
    title = f"  {hit.title}" if hit.title else ""
    return f"{number:>2}. {hit.score:.3f}  {show_line(place)}{show_line(title)}\n      {snippet}"


class PlainProgress:
    """A line on standard error every few seconds, for logs; ``close`` writes the last one if any was written."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= _PLAIN_INTERVAL_S:
            self._last = now
            tell(describe_progress(progress))

    def close(self) -> None:
        """Nothing to end."""


class TerminalProgress:
    """One line on the terminal that is written over."""

    def __init__(self) -> None:
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        line = describe_progress(progress)
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)

    def close(self) -> None:
        """Clears the line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


@contextmanager
def show_progress(after_interrupt: str) -> Iterator[PlainProgress | TerminalProgress]:
    """Progress on standard error, of something that keeps its finished chunks when Ctrl-C stops it.

    Args:
        after_interrupt: who goes on with them, for the note that Ctrl-C brings.

    Raises:
        typer.Exit: Ctrl-C was pressed.
    """
    progress = TerminalProgress() if sys.stderr.isatty() else PlainProgress()
    try:
        yield progress
    except KeyboardInterrupt:
        tell(f"interrupted; finished chunks are kept, and {after_interrupt}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.close()


def describe_progress(progress: Progress) -> str:
    """Documents, rates, shares and the time left; the rate of bytes gives the latter."""
    seconds = max(progress.seconds, 1e-6)
    counts = progress.counts
    reused = _percent(counts.tokens_total - counts.tokens_encoded, counts.tokens_total)
    dense = _percent(counts.tokens_total - counts.tokens_base, counts.tokens_total)
    bytes_left = progress.bytes_total - progress.bytes_done
    left_s = bytes_left * seconds / max(progress.bytes_done, 1)
    return (
        f"{progress.documents_done}/{progress.documents_total} documents, "
        f"{progress.documents_done / seconds:.1f} documents/s, {counts.tokens_encoded / seconds:,.0f} tokens/s, "
        f"reused {reused}, dense {dense}, ETA {format_seconds(left_s)}"
    )


def describe_recipe(recipe: Mapping[str, Any]) -> str:
    """What a feature version is made of, in a few words."""
    model = Path(str(recipe["model"])).name
    return f"{model}, {recipe['dim']} wide, {recipe['precision']}, segments <= {recipe['segment']['max_tokens']} tokens"


def format_seconds(seconds: float) -> str:
    """``42s``, ``3m10s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "0%"
