"""``lodestream run`` and ``lodestream refresh [--every 5m]``."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lodestream.errors import ConfigError, LeaseHeld, LodestreamError
from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.attention import describe_attention
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags

if TYPE_CHECKING:
    from lodestream.pipeline.config.settings import LoadedConfig
    from lodestream.pipeline.schedule import Outcome

MAX_LINES = 10

AllowMassDelete = Annotated[
    bool, typer.Option("--allow-mass-delete", help="Delete even where most documents vanished from the source.")
]


def add_run_verbs(app: typer.Typer) -> None:
    """Makes the verbs known to the command line."""
    app.command()(run)
    app.command()(refresh)


def run(
    config: ConfigFile = None,
    overrides: Overrides = None,
    allow_mass_delete: AllowMassDelete = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute the features of all new and changed documents and publish them."""
    note_flags(as_json=as_json, debug=debug)
    carry_out(load(config, overrides), allow_mass_delete=allow_mass_delete, as_json=as_json)


def refresh(
    every: Annotated[
        str | None, typer.Option("--every", metavar="5m", help="Refresh again after so long, until it is stopped.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    allow_mass_delete: AllowMassDelete = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The same as run; where another run is at work already, it is left to it."""
    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)

    def refresh_once() -> Outcome:
        try:
            carry_out(loaded, allow_mass_delete=allow_mass_delete, as_json=as_json)
        except LeaseHeld as held:
            _show_skipped(held, as_json=as_json)
            return "skipped"
        return "done"

    if every is None:
        refresh_once()
        return
    if allow_mass_delete:
        raise ConfigError("--allow-mass-delete and --every do not go together", "refresh once with the first")
    from lodestream.pipeline.durations import parse_duration
    from lodestream.pipeline.schedule import process_clock, run_every

    try:
        every_s = parse_duration(every)
    except ValueError as error:
        raise ConfigError(f"--every {error}", "refresh --every 5m") from None
    with process_clock() as clock:
        run_every(every_s, refresh_once, clock=clock, show_failure=_show_failure)


def carry_out(
    loaded: LoadedConfig,
    *,
    allow_mass_delete: bool = False,
    retry: Collection[str] | None = None,
    as_json: bool,
) -> None:
    """One run, with what it prints. See ``pipeline.refresh.run`` for the arguments."""
    from lodestream.pipeline import refresh as refresher

    with output.show_progress("the next run continues from them") as progress:
        report = refresher.run(
            loaded, allow_mass_delete=allow_mass_delete, retry=retry, show_progress=progress, show_note=output.tell
        )
    if as_json:
        output.print_json(report.as_dict(), compact=True)
        return
    for warning in report.warnings[:MAX_LINES]:
        output.tell(f"warning: {output.show_line(warning)}")
    for item in report.quarantined[:MAX_LINES]:
        output.tell(f"quarantined: {output.show_line(item['doc_id'])}: {output.show_line(item['reason'])}")
    if len(report.quarantined) > MAX_LINES:
        output.tell(f"... and {len(report.quarantined) - MAX_LINES} more in quarantine (lodestream quarantine list)")
    shares = output.stage_shares(report)
    if shares:
        output.tell(shares)
    attention = describe_attention(report.as_dict()["attention"])
    if attention:
        output.tell(f"attention: {attention}")
    typer.echo(output.summarise_run(report))
    sys.stdout.flush()


def _show_skipped(held: LeaseHeld, *, as_json: bool) -> None:
    values: dict[str, Any] = {"skipped": True, **held.as_dict()}
    if as_json:
        output.print_json(values, compact=True)
    else:
        typer.echo(f"refresh skipped: {output.show_line(held.message)}")
    sys.stdout.flush()


def _show_failure(error: LodestreamError, number: int) -> None:
    output.tell(f"refresh failed ({number} in a row): {output.show_line(error.message)}")
    if error.hint:
        output.tell(f"  next: {output.show_line(error.hint)}")
