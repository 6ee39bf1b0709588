"""``lodestream quarantine list / retry / drop``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, Yes, load, note_flags, require_consent
from lodestream.pipeline.cli.refresh import carry_out

quarantine_app = typer.Typer(
    help="Documents that cannot be used: list them, try them again, give them up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DocIds = Annotated[list[str] | None, typer.Argument(metavar="[DOC]...", help="Documents; all where none is given.")]


def add_quarantine_verbs(app: typer.Typer) -> None:
    """Makes the verbs known to the command line."""
    app.add_typer(quarantine_app, name="quarantine")


@quarantine_app.command("list")
def list_(config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Print every document in quarantine, why, and when it is tried again."""
    from lodestream.pipeline.quarantine import list_quarantine

    note_flags(as_json=as_json, debug=debug)
    rows = list_quarantine(load(config, overrides))
    if as_json:
        output.print_json([_as_json(row) for row in rows])
        return
    for row in rows:
        typer.echo(f"{output.show_line(row['doc_id'])}: {output.show_line(row['quarantine_reason'])}")
        typer.echo(
            f"      {row['quarantine_attempts']} attempts since {_show_time(row['first_failed_at'])}, next "
            f"{_show_time(row['retry_at'])}"
        )
    if not rows:
        typer.echo("nothing is in quarantine")


@quarantine_app.command()
def retry(
    doc_ids: DocIds = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Refresh, and try these documents again whether their time has come or not."""
    from lodestream.pipeline.quarantine import choose_quarantined

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    carry_out(loaded, retry=choose_quarantined(loaded, doc_ids or ()), as_json=as_json)


@quarantine_app.command()
def drop(
    doc_ids: Annotated[list[str], typer.Argument(metavar="DOC...", help="Documents to give up.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    yes: Yes = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Give up the versions that failed; features of earlier versions stay, later versions are looked at as usual."""
    from lodestream.pipeline.quarantine import choose_quarantined, drop_quarantined

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    chosen = choose_quarantined(loaded, doc_ids)
    question = f"give up the failed versions of {len(chosen)} documents?"
    require_consent(question, yes=yes, as_json=as_json, danger="versions that are given up are not tried again")
    sequence = drop_quarantined(loaded, chosen)
    if as_json:
        output.print_json({"dropped": chosen, "snapshot": sequence})
    else:
        typer.echo(f"dropped {len(chosen)} documents from quarantine, snapshot {sequence}")


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    names = ("doc_id", "source", "quarantine_reason", "quarantine_attempts", "first_failed_at", "retry_at")
    return {name: value.isoformat() if isinstance(value := row[name], datetime) else value for name in names}


def _show_time(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")
