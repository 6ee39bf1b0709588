"""``lodestream serve``."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lodestream.errors import ConfigError
from lodestream.pipeline.cli import output
from lodestream.pipeline.cli.options import ConfigFile, Debug, Json, Overrides, load, note_flags

if TYPE_CHECKING:
    from lodestream.pipeline.serve.models import Readiness

_PACKAGES: Final = ("fastapi", "jinja2", "orjson", "prometheus_client", "uvicorn")


def add_serve_verb(app: typer.Typer) -> None:
    """Makes the verb known to the command line."""
    app.command()(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on instead of serve.host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port instead of serve.port; 0: a free one.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run replicas under Ray Serve, behind HAProxy.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: processes that answer.")] = 1,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer over HTTP: features by id, features of new text, search; and a status page."""
    note_flags(as_json=as_json, debug=debug)
    _check_packages(_PACKAGES, "serve")
    if ray:
        _check_packages(("ray",), "serve,ray")
    elif replicas != 1:
        raise ConfigError("--replicas is for Ray Serve", "add --ray")
    given = [f"serve.{name}={value}" for name, value in (("host", host), ("port", port)) if value is not None]
    loaded = load(config, [*(overrides or ()), *given])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    announced: list[str] = []

    def announce(url: str, readiness: Readiness) -> None:
        announced.append(url)
        if as_json:
            output.print_json({"url": url, **readiness.model_dump()}, compact=True)
        else:
            typer.echo(f"{readiness.status}: {output.show_line(readiness.reason)}")
            typer.echo(f"  open {url} for the status page; API: {url}/openapi.json; Ctrl-C ends")
        sys.stdout.flush()

    try:
        if ray:
            from lodestream.pipeline.serve.ray_server import run_ray_server

            run_ray_server(loaded, replicas=replicas, announce=announce)
        else:
            from lodestream.pipeline.serve.server import run_server

            run_server(loaded, announce)
    finally:
        # uvicorn drains, and then raises the signal anew.
        if announced and not as_json:
            typer.echo("stopped")


def _check_packages(names: Sequence[str], extras: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"to serve needs packages: {', '.join(missing)}", f"pip install 'lodestream[{extras}]'")
