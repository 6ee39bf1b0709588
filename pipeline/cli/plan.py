"""``lodestream plan`` and ``lodestream explain DOC``: what the next refresh would do, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags


def add_plan_verbs(app: typer.Typer) -> None:
    """Makes the verbs known to the command line."""
    app.command()(plan)
    app.command()(explain)


def plan(config: ConfigFile = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False) -> None:
    """Look what the next refresh would do. Writes nothing."""
    from lodestream.pipeline.preview import preview_refresh

    note_flags(as_json=as_json, debug=debug)
    values = preview_refresh(load(config, overrides)).as_dict()
    if as_json:
        output.print_json(values)
        return
    for sentence in values["notes"]:
        output.tell(output.show_line(sentence))
    for status, names in values["doc_ids"].items():
        for doc_id in names:
            typer.echo(f"{status:11}  {output.show_line(doc_id)}")
        if values["documents"][status] > len(names):
            typer.echo(f"{status:11}  ... and {values['documents'][status] - len(names)} more")
    typer.echo(_summarise(values))


def _summarise(values: dict[str, Any]) -> str:
    documents, tokens = values["documents"], values["tokens"]
    tally = ", ".join(f"{number} {name}" for name, number in documents.items())
    about = "" if tokens["exact"] else "about "
    minutes = values["minutes"]
    time = "time unknown (nothing was encoded yet)" if minutes is None else f"about {minutes:.1f} minutes"
    version = f" of version {values['version']}" if values["version"] else ""
    return f"plan{version}: {tally} | {about}{tokens['to_encode']} of {tokens['total']} tokens to encode | {time}"


def explain(
    doc_id: Annotated[str, typer.Argument(help="The document, as search prints it.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say why a document was computed or left alone: versions, hashes, segments, and what comes next."""
    from lodestream.pipeline.explain import explain_document

    note_flags(as_json=as_json, debug=debug)
    values = explain_document(load(config, overrides), doc_id).as_dict()
    if as_json:
        output.print_json(values)
        return
    for line in _describe(values):
        typer.echo(output.show_line(line))


def _describe(values: dict[str, Any]) -> list[str]:
    lines = [f"document      {values['doc_id']}"]
    document, state = values["document"], values["source_state"]
    if document is None:
        lines.append(f"store         snapshot {values['snapshot']} does not have it")
    else:
        lines += [
            f"store         snapshot {values['snapshot']}, written by run {document['run_id']}",
            f"content hash  {document['content_hash'][:16]}",
            f"features      {document['feature_version']}, of version {values['version']}",
        ]
    if state is not None:
        lines.append(
            f"source        {state['source']}, version {state['source_version']}, looked at {state['stated_at']}"
        )
    for segment in values["segments"]:
        how = "encoded" if segment["encoded"] else "reused "
        lines.append(
            f"segment       {segment['fingerprint'][:12]}  [{segment['char_start']}:{segment['char_end']}]  "
            f"{segment['tokens']:>4} tokens  {how}  computed {segment['computed_at'][:19]}"
        )
    lines.append(f"next refresh  would {values['next_refresh']}")
    lines += [f"              {reason}" for reason in values["reasons"]]
    return lines
