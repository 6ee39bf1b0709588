"""The verb ``verify``: is the store what was written, and what mends it where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags

if TYPE_CHECKING:
    from lodestream.storage.findings import Verification
    from lodestream.storage.repair import Repair

DRIFT: Final = 3


def add_verify_verb(app: typer.Typer) -> None:
    """Makes the verb known to the command line."""
    app.command()(verify)


def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read everything: compare checksums, try every index.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Take damage out; the next run computes it again.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare pointer, tables, files and rows with each other. Exit code 3 where something is wrong."""
    from lodestream.pipeline import upkeep

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    found = upkeep.verify(loaded, deep=deep)
    done = upkeep.repair(loaded, found) if repair and found.findings else None
    left = done.left if done is not None else found.drift
    if as_json:
        output.print_json({**found.as_dict(), "ok": not left, "repair": None if done is None else done.as_dict()})
    else:
        for line in [*_describe_findings(found), *(_describe_repair(done) if done is not None else [])]:
            typer.echo(output.show_line(line))
        if left and not repair:
            output.tell("  next: lodestream verify --deep --repair, then lodestream run")
    raise typer.Exit(DRIFT if left else 0)


def _describe_findings(found: Verification) -> list[str]:
    rows = ", ".join(f"{number:,} rows of {name}" for name, number in found.num_rows.items())
    word = "drift" if found.drift else "sound"
    lines = [f"{word}: snapshot {found.sequence}, {rows or 'no rows read'}, {found.num_files} files"]
    for finding in found.findings:
        level = "note" if finding.is_note else "fail"
        lines.append(f"{level}  {finding.kind}: {finding.what}")
    return lines


def _describe_repair(done: Repair) -> list[str]:
    lines = [f"repaired: snapshot {done.sequence} is published"]
    told = (
        (done.to_compute, "removed, to be computed again by lodestream run"),
        (done.dropped, "rows without a document removed"),
        (done.files, "files left out"),
    )
    lines += [f"  {what}: {', '.join(names)}" for names, what in told if names]
    lines += ["  indexes made anew"] if done.rebuilt else []
    lines += [f"  {done.num_sealed} documents got a checksum"] if done.num_sealed else []
    lines += [f"  {done.num_swept} leavings of killed runs removed"] if done.num_swept else []
    lines += [f"  staged work of run {done.lost_run} given up"] if done.lost_run else []
    lines += [f"  feature version {name}: damage removed, computed again by versions add" for name in done.versions]
    return lines + [f"left  {finding.kind}: {finding.what}" for finding in done.left]
