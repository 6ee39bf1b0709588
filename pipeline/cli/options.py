"""The options that all verbs share, and what each verb does with them first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from lodestream.errors import ConfigError

if TYPE_CHECKING:
    from lodestream.pipeline.config.settings import LoadedConfig
    from lodestream.pipeline.library import Library

INTERRUPTED: Final = 130
"""Exit code of a command that was stopped by Ctrl-C."""

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Read this file instead of the nearest lodestream.toml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Set a value for this command; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
VersionName = Annotated[
    str | None,
    typer.Option("--version", metavar="NAME", help="Of this feature version instead of the one that is served."),
]
GranularityName = Literal["sentence", "paragraph", "topic", "document"]


class Flags:
    """What an error's printing needs, set by whichever verb runs."""

    json = False
    debug = False


def load(config: Path | None, overrides: list[str] | None) -> LoadedConfig:
    """The configuration that a verb's options name."""
    from lodestream.pipeline.config.settings import load_config

    return load_config(start=Path.cwd(), file=config, overrides=overrides or ())


def open_library(config: Path | None, overrides: list[str] | None, version: str | None = None) -> Library:
    """The configured store, opened for reading."""
    from lodestream.pipeline.library import Library
    from lodestream.storage.store import FeatureStore

    return Library(FeatureStore.open(load(config, overrides).store_location), version=version)


def note_flags(*, as_json: bool = False, debug: bool = False) -> None:
    """Keeps what the printing of an error needs to know."""
    Flags.json, Flags.debug = as_json, debug


def require_consent(
    question: str, *, yes: bool, as_json: bool, danger: str, hint: str = "add --yes to carry it out"
) -> None:
    """Asks before what cannot simply be undone, unless ``--yes`` was given; whoever reads JSON cannot be asked.

    Raises:
        ConfigError: JSON is wanted and there is no ``--yes``; ``danger`` says what is at stake.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if as_json:
        raise ConfigError(danger, hint)
    typer.confirm(question, abort=True, err=True)
