"""The verbs ``snapshots list`` and ``snapshots rollback``."""

from __future__ import annotations

from typing import Annotated

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, Yes, load, note_flags, require_consent

snapshots_app = typer.Typer(help="List snapshots, or go back to one.", no_args_is_help=True, rich_markup_mode=None)


@snapshots_app.command("list")
def list_snapshots(
    config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """List the snapshots that can be opened, oldest first."""
    from lodestream.storage.snapshot import read_pointer

    note_flags(as_json=as_json, debug=debug)
    pointer, _ = read_pointer(load(config, overrides).store_location)
    rows = [
        {
            "sequence": record.sequence,
            "published_at": record.published_at.isoformat() if record.published_at else None,
            "run_id": record.run_id,
            "version": record.version,
            "feature_version": record.feature_version,
            "is_latest": record.sequence == pointer.sequence,
        }
        for record in pointer.history
    ]
    if as_json:
        output.print_json(rows)
        return
    for row in rows:
        mark = "  <- latest" if row["is_latest"] else ""
        typer.echo(f"{row['sequence']:>6}  {row['published_at']}  {row['run_id']}  {row['version']}{mark}")
    if not rows:
        output.tell("nothing is published yet; next: lodestream run")


@snapshots_app.command()
def rollback(
    sequence: Annotated[int, typer.Argument(metavar="N", help="The snapshot, as `snapshots list` prints it.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    yes: Yes = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Publish an earlier snapshot anew. The next refresh computes again what its sources have changed since."""
    from lodestream.pipeline.rollback import roll_back
    from lodestream.storage.snapshot import read_pointer

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    pointer, _ = read_pointer(loaded.store_location)
    earlier = pointer.find_snapshot(sequence)
    if pointer.staged is not None:
        output.tell(f"what the unfinished run {pointer.staged.run_id} has staged is given up")
    question = f"go back from snapshot {pointer.sequence} to {sequence} ({earlier.published_at})?"
    require_consent(question, yes=yes, as_json=as_json, danger="a rollback changes what every reader sees")
    snapshot = roll_back(loaded, sequence)
    if as_json:
        output.print_json({"snapshot": {"before": pointer.sequence, "after": snapshot.sequence}, "same_as": sequence})
    else:
        typer.echo(f"snapshot {pointer.sequence} -> {snapshot.sequence}, which is {sequence} again")
