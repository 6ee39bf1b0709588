"""Verbs that look after the store: ``migrate``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags


def add_store_verbs(app: typer.Typer) -> None:
    """Makes the verbs known to the command line."""
    app.command()(migrate)


def migrate(
    config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Bring a store that an older lodestream wrote to this one's schema."""
    from lodestream.storage.migration import migrate_store

    note_flags(as_json=as_json, debug=debug)
    done = migrate_store(load(config, overrides).store_location)
    if as_json:
        output.print_json(asdict(done))
    elif done.schema_before == done.schema_after:
        typer.echo(f"the store has schema version {done.schema_after} already")
    else:
        if done.dropped_run_id:
            output.tell(f"the unfinished run {done.dropped_run_id} begins anew with the next run")
        typer.echo(
            f"migrated from schema version {done.schema_before} to {done.schema_after}: "
            f"{done.num_documents} documents, snapshot {done.sequence}"
        )
