"""The ``lodestream`` command. Each verb lies here thin: what it does is in the modules it calls.

Those are imported inside the verbs, so that ``--help`` and ``status`` answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from lodestream.errors import LodestreamError
from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import (
    INTERRUPTED,
    ConfigFile,
    Debug,
    Flags,
    GranularityName,
    Json,
    Overrides,
    VersionName,
    load,
    note_flags,
    open_library,
)
from lodestream.pipeline.cli.plan import add_plan_verbs
from lodestream.pipeline.cli.quarantine import add_quarantine_verbs
from lodestream.pipeline.cli.refresh import add_run_verbs
from lodestream.pipeline.cli.serve import add_serve_verb
from lodestream.pipeline.cli.signals import interrupt_on_sigterm
from lodestream.pipeline.cli.snapshots import snapshots_app
from lodestream.pipeline.cli.status import add_status_verb
from lodestream.pipeline.cli.store import add_store_verbs
from lodestream.pipeline.cli.upkeep import add_upkeep_verbs
from lodestream.pipeline.cli.verify import add_verify_verb
from lodestream.pipeline.cli.versions import versions_app
from lodestream.pipeline.config.templates import FOLDERS, Template
from lodestream.pipeline.process import set_process_defaults

app = typer.Typer(
    name="lodestream",
    help="Sentence, paragraph, topic and document features of a changing corpus.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show the configuration.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
add_run_verbs(app)
add_plan_verbs(app)
add_serve_verb(app)
add_status_verb(app)
add_quarantine_verbs(app)
app.add_typer(snapshots_app, name="snapshots")
app.add_typer(versions_app, name="versions")
add_store_verbs(app)
add_upkeep_verbs(app)
add_verify_verb(app)


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from lodestream import __version__

        typer.echo(f"lodestream {__version__}")
        raise typer.Exit


@app.command()
def init(
    path: Annotated[str | None, typer.Argument(help="Folder, file or address of the documents.")] = None,
    template: Annotated[Template, typer.Option(help="Kind of source.")] = "files",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write lodestream.toml into the current folder."""
    from lodestream.errors import ConfigError
    from lodestream.pipeline.config.settings import write_initial_config

    note_flags(as_json=as_json, debug=debug)
    folder = Path(path or ".").expanduser()
    if template in FOLDERS and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{path} {what}", "give the folder that holds your documents: lodestream init PATH")
    target = Path.cwd()
    write_initial_config(target, source_path=path, template=template)
    written = str(target / "lodestream.toml")
    if as_json:
        output.print_json({"written": written, "next": ["lodestream check", "lodestream run"]})
        return
    typer.echo(f"wrote {written}")
    typer.echo("next:  lodestream check            # is everything in place?")
    typer.echo("       lodestream run              # compute the features")
    typer.echo('       lodestream search "..."     # nearest paragraphs')


@app.command()
def check(config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Look whether a run would work: configuration, sources, store, disk, model, executor."""
    from lodestream.pipeline.checks.check import check_all

    note_flags(as_json=as_json, debug=debug)
    results = []
    for result in check_all(load(config, overrides)):
        results.append(result)
        if not as_json:
            typer.echo(f"{result.level:4}  {result.name}: {output.show_line(result.detail)}")
            if result.fix:
                typer.echo(f"      fix: {output.show_line(result.fix)}")
    failed = any(result.level == "fail" for result in results)
    if as_json:
        output.print_json({"ok": not failed, "checks": [result.as_dict() for result in results]})
    raise typer.Exit(1 if failed else 0)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for, in plain words.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Number of hits.")] = 5,
    granularity: Annotated[GranularityName, typer.Option(help="Which spans to search.")] = "paragraph",
    min_density: Annotated[
        float | None, typer.Option("--min-density", min=0.0, max=1.0, help="Leave out spans of lower density.")
    ] = None,
    headings: Annotated[bool, typer.Option("--headings", help="Include spans that are only a heading.")] = False,
    version: VersionName = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the spans nearest to a text."""
    note_flags(as_json=as_json, debug=debug)
    library = open_library(config, overrides, version)
    hits = library.search(text, limit=limit, granularity=granularity, min_density=min_density, headings=headings)
    if as_json:
        values = {
            "query": text,
            "snapshot": library.snapshot.sequence,
            "version": library.snapshot.version,
            "hits": [hit.as_dict() for hit in hits],
        }
        output.print_json(values)
        return
    if not hits:
        typer.echo("nothing found: the snapshot has no such rows (try another --granularity or a lower --min-density)")
    for number, hit in enumerate(hits, start=1):
        typer.echo(output.show_hit(number, hit))


@app.command()
def get(
    doc_id: Annotated[str, typer.Argument(help="The document, as search prints it.")],
    granularity: Annotated[GranularityName | None, typer.Option(help="Only rows of this granularity.")] = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Include the vectors as floats (with --json).")] = False,
    version: VersionName = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the feature rows of one document."""
    from lodestream.pipeline.library import rows_as_json

    note_flags(as_json=as_json, debug=debug)
    library = open_library(config, overrides, version)
    rows = rows_as_json(library.get(doc_id, granularity=granularity), vectors=vectors)
    if as_json:
        snapshot = library.snapshot
        values = {"doc_id": doc_id, "snapshot": snapshot.sequence, "version": snapshot.version, "rows": rows}
        output.print_json(values, compact=vectors)
        return
    document = library.snapshot.get_document(doc_id) or {"text": ""}
    for row in rows:
        snippet = output.show_line(" ".join(document["text"][row["char_start"] : row["char_end"]].split())[:80])
        typer.echo(
            f"{row['granularity']:9} {row['ordinal']:>5}  [{row['char_start']}:{row['char_end']}]  "
            f"tokens {row['token_count']:>4}  density {row['density']:.2f}  {snippet}"
        )


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    version: VersionName = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write over a file that exists.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the published features with decoded vectors to a Parquet file."""
    from lodestream.errors import ConfigError

    note_flags(as_json=as_json, debug=debug)
    if path.exists() and not yes:
        raise ConfigError(f"{path} exists", "give another name, or --yes to write over it")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder {path.parent} does not exist", f"mkdir -p {path.parent}")
    library = open_library(config, overrides, version)
    num_rows = library.export(path)
    values = {
        "path": str(path),
        "rows": num_rows,
        "snapshot": library.snapshot.sequence,
        "version": library.snapshot.version,
    }
    if as_json:
        output.print_json(values)
    else:
        typer.echo(f"wrote {num_rows} rows of snapshot {library.snapshot.sequence} to {path}")


@config_app.command("show")
def config_show(
    config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Print every setting with its value and its origin."""
    from lodestream.pipeline.config.settings import list_settings

    note_flags(as_json=as_json, debug=debug)
    settings = list_settings(load(config, overrides))
    if as_json:
        output.print_json([{"name": n, "value": v, "origin": o} for n, v, o in settings])
        return
    width = max(len(name) for name, _, _ in settings)
    for name, value, origin in settings:
        shown = ", ".join(value) if isinstance(value, list | tuple) else value
        typer.echo(f"{name:<{width}}  {output.show_line(str(shown))}    ({origin})")


@config_app.command("schema")
def config_schema(debug: Debug = False) -> None:
    """Print the JSON schema of lodestream.toml."""
    from lodestream.pipeline.config.settings import Config

    note_flags(debug=debug)
    output.print_json(Config.model_json_schema())


def main() -> None:
    """Runs the command line; errors become one message and an exit code, never a traceback (but with --debug)."""
    set_process_defaults()
    with interrupt_on_sigterm():
        code = _run_app()
    sys.exit(code)


def _run_app() -> int:
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except LodestreamError as error:
        if Flags.debug:
            raise
        _print_error(error)
        return error.exit_code
    except typer.Abort:
        output.tell("stopped")
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except TyperException as error:
        return _print_usage(error)
    except Exception as error:
        if Flags.debug:
            raise
        return _print_unforeseen(error)


def _print_error(error: LodestreamError) -> None:
    if Flags.json:
        output.print_json(error.as_dict(), compact=True)
    first, *others = error.message.split("\n")
    output.tell(f"error: {output.show_line(first)}")
    for line in others:
        output.tell(f"       {output.show_line(line)}")
    if error.hint:
        output.tell(f"  next: {output.show_line(error.hint)}")


def _print_usage(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    output.tell(f"error: {output.show_line(error.format_message())}")
    output.tell(f"  next: {context.command_path if context else 'lodestream'} --help")
    return error.exit_code


def _print_unforeseen(error: Exception) -> int:
    output.tell(f"error: {type(error).__name__}: {output.show_line(str(error))}")
    output.tell("  next: this is a defect; run again with --debug and report the traceback")
    return 1


if __name__ == "__main__":
    main()
