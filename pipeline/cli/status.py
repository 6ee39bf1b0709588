"""``lodestream status``."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any, Final

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.attention import describe_attention
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags

WATCH_INTERVAL_S: Final = 2.0
SHOWN_RUNS: Final = 6


def add_status_verb(app: typer.Typer) -> None:
    """Makes the verb known to the command line."""
    app.command()(status)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Print it again every two seconds.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """One word on the store's health, how far it lags, its lease and its last runs. Exit code 3 unless healthy."""
    from lodestream.pipeline.status import read_status

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    while True:
        found = read_status(loaded)
        if watch and sys.stdout.isatty():
            sys.stdout.write("\x1b[2J\x1b[H")
        if as_json:
            output.print_json(found.as_dict(), compact=watch)
        else:
            for line in _describe_status(found.as_dict()):
                typer.echo(output.show_line(line))
        if not watch:
            raise typer.Exit(found.exit_code)
        sys.stdout.flush()
        time.sleep(WATCH_INTERVAL_S)


def _describe_status(values: dict[str, Any]) -> list[str]:
    lines = [f"{values['health']}: {values['reason']}", f"store      {values['store']}"]
    snapshot = values.get("snapshot")
    if snapshot:
        age = output.format_seconds(snapshot["age_seconds"])
        lines.append(f"snapshot   {snapshot['sequence']}, published {age} ago by {snapshot['run_id']}")
        lines += [f"           {snapshot['kept_too_short']}"] if snapshot["kept_too_short"] else []
        lines.append(
            f"version    {values['version']}: {values['feature_version']} ({output.describe_recipe(values['recipe'])})"
        )
    lines += [_describe_beside(kept) for kept in values.get("versions", ())]
    lines += [_describe_source(source) for source in values.get("sources", ())]
    lease = values.get("lease")
    if lease and lease["held"]:
        held = output.format_seconds(lease["held_seconds"])
        lines.append(f"lease      {lease['holder']}, epoch {lease['epoch']}, for about {held}")
    elif lease:
        lines.append(f"lease      free (epoch {lease['epoch']})")
    last = values.get("last_run")
    if last:
        documents, segments = last["documents"], last["segments"]
        others = [f"{number} {name}" for name, number in documents.items() if number and name != "seen"]
        tally = ", ".join([f"{documents['seen']} seen", *others])
        lines.append(f"last run   {last['run_id']}: {last['seconds']:.1f}s, {tally}")
        lines.append(f"           {segments['encoded']} of {segments['total']} segments encoded, {last['backend']}")
        attention = describe_attention(last["attention"]) if "attention" in last else ""
        if attention:
            lines.append(f"attention  {attention}")
    recent = values.get("recent_runs", [])
    lines += [_describe_run(entry) for entry in reversed(recent[-SHOWN_RUNS:-1])]
    return lines


def _describe_beside(kept: dict[str, Any]) -> str:
    level = f"as of snapshot {kept['level_with']}" if kept["level_with"] else "unfinished"
    return f"beside     {kept['name']}: {kept['feature_version']} ({output.describe_recipe(kept['recipe'])}), {level}"


def _describe_source(source: dict[str, Any]) -> str:
    lag = output.format_seconds(source["lag_seconds"])
    parts = [f"source     {source['name']}: {source['mode']}, lag {lag}"]
    if source["held_back_seconds"]:
        parts.append(f"held back {source['held_back_seconds']:.1f}s")
    if source["rows_in_the_future"]:
        parts.append(f"{source['rows_in_the_future']} stamped in the future")
    if source["rows_the_sweep_found"]:
        parts.append(f"{source['rows_the_sweep_found']} found by the sweep alone")
    return ", ".join(parts)


def _describe_run(entry: dict[str, Any]) -> str:
    others = [f"{number} {name}" for name, number in entry["documents"].items() if name != "seen"]
    tally = ", ".join([f"{entry['documents'].get('seen', 0)} seen", *others])
    return f"before     {entry['run_id']}: {entry['seconds']:.1f}s, {tally}"
