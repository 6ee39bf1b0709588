"""Twelve months of real edits, one refresh for each moment with changes: how little is encoded again, and at what cost.

Replays the streams named by the environment variable LODESTREAM_STREAMS (folder of ``stream_*.parquet`` with columns
ts, op, id, text), as files of a folder and as a table of PostgreSQL in mode ``xid``. All is real but the encoder, which
counts tokens and costs next to nothing; ``real`` replays the documents that are edited most with the real one. At the
end of each the store must equal a full rebuild (with the real encoder: codes within one unit), else it fails.

    LODESTREAM_STREAMS=FOLDER python tests/bench/bench_replay.py SCRATCH [peps:files] [rfcs:table] ... [--until TICKS]

``SCRATCH`` keeps finished replays, and those of files that were interrupted: the same command goes on with what is
left, and writes docs/bench/replay.jsonl and docs/replay.png from all that is there. ``--until`` ends a replay early.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
from bench_empty_tick import time_command
from matplotlib.figure import Figure

from tests.support.replay import (
    Files,
    Refreshed,
    Replayed,
    TableRows,
    Tick,
    assert_rebuilt,
    counting_encoder,
    format_of,
    read_stream,
    run_refresh,
)
from tests.support.servers import run_postgres
from tests.support.workspace import Workspace

NAME = "replay"
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "replay.png"
REPLAYS = tuple((stream, kind) for stream in ("rfcs", "peps") for kind in ("files", "table", "real"))
GOALS = {"peps": 0.18, "rfcs": 0.13}
EMPTY_EVERY = 10
NUM_REAL = 24
BURST = 500


def main() -> None:
    """Replays what has not been replayed, and records everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("replays", nargs="*", default=[f"{stream}:{kind}" for stream, kind in REPLAYS])
    parser.add_argument("--until", type=int, metavar="TICKS")
    arguments = parser.parse_args()
    folder = os.environ.get("LODESTREAM_STREAMS")
    if not folder:
        print("left out: LODESTREAM_STREAMS names no folder with stream_*.parquet")
        return
    scratch = arguments.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    for stream, kind in (replay.split(":") for replay in arguments.replays):
        result = scratch / f"{stream}-{kind}.json"
        if not result.exists():
            path = Path(folder) / f"stream_{stream}_12m.parquet"
            result.write_text(json.dumps(replay_stream(path, kind, scratch / f"{stream}-{kind}", arguments.until)))
        print(f"{stream} as {kind} is done", flush=True)
    results = {
        (stream, kind): json.loads(path.read_text())
        for stream, kind in REPLAYS
        if (path := scratch / f"{stream}-{kind}.json").exists()
    }
    harness.start(NAME)
    for (stream, kind), outcome in results.items():
        record(stream, kind, outcome)
    draw({stream: outcome["refreshes"] for (stream, kind), outcome in results.items() if kind == "files"})


# ---- replay ----------------------------------------------------------------------------------------------------------


def replay_stream(path: Path, kind: str, folder: Path, until: int | None) -> dict[str, Any]:
    """Replays one stream in a workspace, compares the end with a rebuild, and removes the workspace."""
    base, ticks = read_stream(path)
    if kind == "real":
        base, ticks = choose_edited(base, ticks, NUM_REAL)
    progress = folder.with_suffix(".progress.json")
    if kind == "table" or not progress.exists():
        shutil.rmtree(folder, ignore_errors=True)
        progress.unlink(missing_ok=True)
    with open_source(kind, folder, format_of(base.texts)) as replayed:
        with contextlib.nullcontext() if kind == "real" else counting_encoder():
            done = run_ticks(replayed, base, ticks[:until], progress)
            num_rows = assert_rebuilt(replayed, max_step=1 if kind == "real" else 0)
        commands = [] if kind == "real" else [time_empty_command(folder) for _ in range(3)]
    shutil.rmtree(folder)
    progress.unlink()
    counts = {"documents": len(base.texts), "num_rows": num_rows, "num_ticks": len(ticks)}
    return {**counts, **done, "empty_commands": commands}


def choose_edited(base: Tick, ticks: Sequence[Tick], number: int) -> tuple[Tick, list[Tick]]:
    """The stream of the documents alone that are edited most often."""
    edits = Counter(name for tick in ticks for name in tick.texts)
    chosen = {name for name, _ in edits.most_common(number)}
    kept = [tick.restrict(chosen) for tick in ticks]
    return base.restrict(chosen), [tick for tick in kept if tick.texts or tick.deleted]


@contextlib.contextmanager
def open_source(kind: str, folder: Path, text_format: str) -> Iterator[Replayed]:
    """A folder, empty or as an interrupted replay left it, or a table of a server of its own."""
    settings = ("run.executor=local", "encoder.num_threads=1")
    workspace = (
        Workspace(root=folder, settings=settings) if folder.exists() else Workspace.create(folder, {}, *settings)
    )
    if kind != "table":
        yield Files(workspace)
        return
    with run_postgres() as server:
        yield TableRows(workspace, server.url, text_format)


def run_ticks(replayed: Replayed, base: Tick, ticks: Sequence[Tick], progress: Path) -> dict[str, Any]:
    """The first run, a refresh for each tick, and after every tenth one more that finds nothing."""
    done: dict[str, Any] = json.loads(progress.read_text()) if progress.exists() else {}
    if not done:
        replayed.apply(base)
        done = {"backfill": asdict(run_refresh(replayed, base.at_s)), "refreshes": [], "empty": []}
    for place in range(len(done["refreshes"]), len(ticks)):
        replayed.apply(ticks[place])
        done["refreshes"].append(asdict(run_refresh(replayed, ticks[place].at_s)))
        if place % EMPTY_EVERY == 0:
            empty = run_refresh(replayed, ticks[place].at_s)
            assert not empty.changed and not empty.tokens
            done["empty"].append(asdict(empty))
        progress.write_text(json.dumps(done))
    return done


def time_empty_command(folder: Path) -> float:
    """Seconds of processor time of a whole command that finds nothing."""
    return time_command(folder, "-m", "lodestream", "refresh", "--set", "run.executor=local")[1]


# ---- results ---------------------------------------------------------------------------------------------------------


def record(stream: str, kind: str, outcome: dict[str, Any]) -> None:
    """The lines of one replay."""
    refreshes = [Refreshed(**one) for one in outcome["refreshes"]]
    provider = f"{stream} as {'files' if kind == 'real' else kind}"
    if kind == "real":
        provider += f", the {outcome['documents']} edited most, real encoder"
    config = {
        "encoder": "all-MiniLM-L6-v2" if kind == "real" else "counts tokens only",
        "documents": outcome["documents"],
        "feature_rows": outcome["num_rows"],
        "equals_rebuild": "codes within one unit, all else exactly" if kind == "real" else "exactly",
        "refreshes": len(refreshes),
        "moments_with_changes": outcome["num_ticks"],
        "documents_changed": sum(one.changed for one in refreshes),
        "documents_moved": sum(one.moved for one in refreshes),
        "documents_deleted": sum(one.deleted for one in refreshes),
        "tokens": sum(one.tokens for one in refreshes),
        "tokens_encoded": sum(one.tokens_encoded for one in refreshes),
    }
    harness.record(NAME, provider, "encoded_share", "1", [share_of(refreshes)], config=config)
    small = [one for one in refreshes if one.changed + one.moved < BURST]
    if len(small) < len(refreshes):
        config = {"refreshes": len(small)}
        harness.record(NAME, provider, "encoded_share, bursts left out", "1", [share_of(small)], config=config)
    seconds = {
        "backfill, processor time": [outcome["backfill"]["cpu_s"]],
        "refresh, processor time": [one.cpu_s for one in refreshes],
        "empty refresh, processor time": [one["cpu_s"] for one in outcome["empty"]],
        "empty refresh, whole command, processor time": outcome["empty_commands"],
    }
    for metric, values in seconds.items():
        if values:
            harness.record(NAME, provider, metric, "s", values)


def share_of(refreshes: Sequence[Refreshed]) -> float:
    """Tokens encoded to tokens of the documents that were edited or added."""
    return sum(one.tokens_encoded for one in refreshes) / sum(one.tokens for one in refreshes)


def draw(streams: dict[str, list[dict[str, Any]]]) -> None:
    """Of each refresh: tokens encoded against tokens of the documents that changed."""
    if not streams:
        return
    figure = Figure(figsize=(4.5 * len(streams), 4), layout="constrained")
    panels = figure.subplots(1, len(streams), sharey=True, squeeze=False)[0]
    for axes, (stream, refreshes) in zip(panels, sorted(streams.items()), strict=True):
        tokens = [one["tokens"] for one in refreshes]
        encoded = [one["tokens_encoded"] for one in refreshes]
        axes.scatter(tokens, [max(number, 1) for number in encoded], s=14, alpha=0.5, linewidths=0)
        ends = [min(number for number in tokens if number), max(tokens)]
        axes.plot(ends, ends, color="black", linestyle="--", linewidth=0.9, label="everything encoded again")
        share = sum(encoded) / sum(tokens)
        axes.plot(
            ends, [share * end for end in ends], color="tab:red", linewidth=1, label=f"all refreshes: {share:.1%}"
        )
        axes.set(xscale="log", yscale="log", title=f"{stream.upper()}, {len(refreshes)} refreshes")
        axes.set_xlabel("tokens of edited and added documents")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", frameon=False)
    figure.axes[0].set_ylabel("tokens encoded (1 where none)")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
    for stream, refreshes in streams.items():
        share = share_of([Refreshed(**one) for one in refreshes])
        print(f"{stream}: {share:.1%}, goal {GOALS[stream]:.0%}: {'met' if share <= GOALS[stream] else 'NOT met'}")


if __name__ == "__main__":
    main()
