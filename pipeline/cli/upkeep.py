"""The verb ``gc``: fewer files, fewer bytes, and documents that must be gone for good."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags, require_consent
from lodestream.pipeline.sizes import MIB

if TYPE_CHECKING:
    from lodestream.pipeline.config.settings import LoadedConfig
    from lodestream.storage.cache.purge import PagePurge
    from lodestream.storage.maintenance import Upkeep
    from lodestream.storage.purge import PurgePlan

_NOTEWORTHY_BYTES: Final = MIB // 10


def add_upkeep_verbs(app: typer.Typer) -> None:
    """Makes the verbs known to the command line."""
    app.command()(gc)


def gc(
    purge: Annotated[
        list[str] | None,
        typer.Option("--purge", metavar="DOC", help="Remove this document from every snapshot; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Purge without asking.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Free what the store no longer needs: merge files, drop old versions, sweep the leavings of killed runs."""
    from lodestream.pipeline.upkeep import collect

    note_flags(as_json=as_json, debug=debug)
    loaded = load(config, overrides)
    if purge:
        _purge(loaded, purge, yes=yes, as_json=as_json)
        return
    done = collect(loaded)
    if as_json:
        output.print_json(done.as_dict())
        return
    typer.echo(_describe(done))
    if done.postponed:
        output.tell(f"no files were merged: {done.postponed}; next: lodestream run")


def _describe(done: Upkeep) -> str:
    merged = f"merged the files of {', '.join(done.compacted)}" if done.compacted else "no files to merge"
    return (
        f"{_describe_change(done.freed_bytes)}: {_format_mib(done.bytes_before)} in {done.num_files_before} files -> "
        f"{_format_mib(done.bytes_after)} in {done.num_files} files | {merged} | "
        f"{done.num_swept} leavings of killed runs swept | snapshot {done.sequence}"
    )


def _describe_change(freed_bytes: int) -> str:
    if freed_bytes <= -_NOTEWORTHY_BYTES:
        return f"grew by {_format_mib(-freed_bytes)} until the earlier snapshots go"
    return f"freed {_format_mib(freed_bytes)}" if freed_bytes >= _NOTEWORTHY_BYTES else "nothing to free"


def _format_mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.1f} MiB"


def _purge(loaded: LoadedConfig, doc_ids: list[str], *, yes: bool, as_json: bool) -> None:
    from lodestream.pipeline import upkeep

    planned = upkeep.plan(loaded, doc_ids)
    for line in _announce(planned):
        output.tell(line)
    require_consent("Remove them for good?", yes=yes, as_json=as_json, danger="a purge cannot be undone")
    done, pages = upkeep.purge(loaded, planned)
    if as_json:
        output.print_json({**done.as_dict(), "cache": asdict(pages)})
        return
    freed = done.bytes_before - done.bytes_after
    typer.echo(
        f"purged {', '.join(output.show_line(name) for name in planned.doc_ids)}: "
        f"{_format_mib(done.bytes_before)} -> {_format_mib(done.bytes_after)} ({_format_mib(abs(freed))} "
        f"{'less' if freed >= 0 else 'more'}), snapshot {done.sequence}"
    )
    for line in _describe_pages(pages):
        output.tell(line)


def _describe_pages(pages: PagePurge) -> list[str]:
    gone = f"{pages.num_removed} pages of the endpoint's cache removed from {pages.folder}"
    lines = [f"{gone}; endpoints that use it forget what they hold in memory within seconds"]
    if pages.failures:
        lines.append(f"pages that are left: {'; '.join(pages.failures)}; next: remove the folder")
    lines.append(
        "not reached: the cache of endpoints on other machines, or of another cache.folder, until cache.max_age"
    )
    return lines


def _announce(planned: PurgePlan) -> list[str]:
    rows = ", ".join(f"{number} rows of {name}" for name, number in planned.num_rows.items() if number)
    names = ", ".join(output.show_line(name) for name in planned.doc_ids)
    lines = [f"purge of {names}: {rows or 'no rows of the published snapshot'}"]
    if planned.lost_sequences:
        lost = ", ".join(map(str, planned.lost_sequences))
        lines.append(f"lost by it: the snapshots {lost} can no longer be opened or rolled back to")
    if planned.lost_run:
        lines.append(f"lost by it: what run {planned.lost_run}, unfinished, has staged; the next run computes it again")
    lines.append("a document that its source still has comes back with the next run: delete or exclude it there first")
    return lines
