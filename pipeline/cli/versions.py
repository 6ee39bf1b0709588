"""The verbs ``versions list | add | promote | rollback | drop``: other features beside those that are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import (
    ConfigFile,
    Debug,
    Json,
    Overrides,
    Yes,
    load,
    note_flags,
    require_consent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lodestream.pipeline.config.settings import LoadedConfig
    from lodestream.pipeline.versions import Change

MAX_LINES = 10

versions_app = typer.Typer(
    help="Keep features of another model or recipe beside those that are served, and change over.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The feature version.")]


@versions_app.command("list")
def list_all(
    config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """List the feature versions, the one that is served first."""
    from lodestream.pipeline.versions import list_versions

    note_flags(as_json=as_json, debug=debug)
    rows = list_versions(load(config, overrides))
    if as_json:
        output.print_json(rows)
        return
    for row in rows:
        typer.echo(output.show_line(_describe_version(row)))


@versions_app.command()
def add(
    name: Name,
    then_promote: Annotated[bool, typer.Option("--promote", help="Serve it as soon as it is complete.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute the features that the configuration (or --set) asks for, from the stored texts, beside those served.

    After a kill the same command goes on from the last chunk.
    """
    from lodestream.pipeline import versions

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    change = _carry_out(versions.add, loaded, name)
    if then_promote:
        _show(change, f"version {name} is complete", as_json=False, to_stderr=True)
        _promote(loaded, name, as_json=as_json)
        return
    _show(change, f"version {name} is complete, {change.served} is served", as_json=as_json)
    if not as_json:
        output.tell(f"  next: lodestream search --version {name} TEXT, then lodestream versions promote {name}")


@versions_app.command()
def promote(
    name: Name, config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Serve a version from now on. What it lacks of the latest documents is computed first; the one before is kept."""
    note_flags(as_json=as_json, debug=debug)
    _promote(load(config, overrides), name, as_json=as_json)


@versions_app.command()
def rollback(
    config: ConfigFile = None,
    overrides: Overrides = None,
    yes: Yes = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve the version again that was served before, with the latest documents."""
    from lodestream.pipeline.versions import name_former

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    name = name_former(loaded)
    question = f"serve version {name} again?"
    require_consent(question, yes=yes, as_json=as_json, danger="a rollback changes what every reader sees")
    _promote(loaded, name, as_json=as_json)


@versions_app.command()
def drop(
    name: Name,
    config: ConfigFile = None,
    overrides: Overrides = None,
    yes: Yes = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Give a version up, with the snapshots that it served. Its files go with the first upkeep an hour later."""
    from lodestream.pipeline import versions
    from lodestream.storage.snapshot import read_pointer
    from lodestream.storage.version_keeper import require_other

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    pointer, _ = read_pointer(loaded.store_location)
    lost = versions.list_served(pointer, require_other(pointer, name))
    if lost:
        output.tell(f"lost by it: the snapshots {', '.join(map(str, lost))} can no longer be opened or rolled back to")
    question = f"drop the feature version {name}?"
    require_consent(question, yes=yes, as_json=as_json, danger="a version that is dropped has to be computed again")
    lost = versions.drop(loaded, name)
    if as_json:
        output.print_json({"dropped": name, "lost_snapshots": lost})
    else:
        typer.echo(f"dropped version {name}; its files go with the first run or gc an hour from now")


def _promote(loaded: LoadedConfig, name: str, *, as_json: bool) -> None:
    from lodestream.pipeline import versions

    before = versions.read_served(loaded)
    change = _carry_out(versions.promote, loaded, name)
    _show(change, f"version {name} is served in the place of {before}", as_json=as_json)
    advice = versions.advise_settings(loaded)
    if advice and not as_json:
        output.tell(f"  next: {advice}")


def _carry_out(verb: Callable[..., Change], loaded: LoadedConfig, name: str) -> Change:
    with output.show_progress("the same command goes on from them") as progress:
        return verb(loaded, name, show_progress=progress, show_note=output.tell)


def _show(change: Change, what: str, *, as_json: bool, to_stderr: bool = False) -> None:
    values = change.as_dict()
    if as_json:
        output.print_json(values)
        return
    documents, segments, tokens = values["documents"], values["segments"], values["tokens"]
    for item in documents["failed"][:MAX_LINES]:
        output.tell(f"cannot be used: {output.show_line(item['doc_id'])}: {output.show_line(item['reason'])}")
    line = (
        f"{what}: {documents['computed']} documents computed, {documents['removed']} removed in {change.seconds:.1f}s "
        f"| {segments['encoded']} of {segments['total']} segments encoded "
        f"({tokens['encoded']} of {tokens['total']} tokens) "
        f"| snapshot {change.snapshot_before} -> {change.snapshot_after}"
    )
    typer.echo(line, err=to_stderr)


def _describe_version(row: dict[str, Any]) -> str:
    mark = {"served": "<- served", "unfinished": "unfinished: lodestream versions add goes on"}.get(row["state"])
    if mark is None:
        behind = row["documents_behind"]
        mark = f"{behind} documents behind" if behind else "level"
        mark += ", served before" if row["is_rollback_target"] else ""
        mark += f" ({row['differences']})" if row["differences"] else ""
    return f"{row['name']:<12}  {row['feature_version']}  {output.describe_recipe(row['recipe'])}  {mark}"
