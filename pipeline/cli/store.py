"""Verbs that look after the store: ``migrate``, ``unlock``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, Yes, load, note_flags, require_consent


def add_store_verbs(app: typer.Typer) -> None:
    """Makes the verbs known to the command line."""
    app.command()(migrate)
    app.command()(unlock)


def migrate(
    config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Bring a store that an older lodestream wrote to this one's schema."""
    from lodestream.storage.migration import migrate_store

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    done = migrate_store(loaded.store_location, ttl_s=loaded.config.lease.ttl_s)
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


def unlock(
    epoch: Annotated[int, typer.Option("--epoch", help="The lease's epoch, as status or the error says it.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    yes: Yes = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take the right to write from a run that hangs. If it is alive after all, it stops and publishes nothing."""
    from lodestream.errors import NotFoundError
    from lodestream.storage.coordination import open_lease
    from lodestream.storage.lease import break_lease, read_lease

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    register = open_lease(loaded.store_location, ttl_s=loaded.config.lease.ttl_s)
    found = read_lease(register)
    if found is None or found[0].released:
        raise NotFoundError("nobody holds the lease", "lodestream status")
    require_consent(
        f"take the lease from {output.show_line(found[0].holder)} (epoch {found[0].epoch})?",
        yes=yes,
        as_json=as_json,
        danger="the holder may be alive, and would stop",
        hint="add --yes to take the lease all the same",
    )
    broken = break_lease(register, epoch)
    if as_json:
        output.print_json({"holder": broken.holder, "epoch": broken.epoch})
    else:
        typer.echo(f"epoch {broken.epoch} ({output.show_line(broken.holder)}) has lost the lease; the next run goes on")
