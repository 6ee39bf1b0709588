"""The layers a configuration is put together from: a TOML file, environment variables, ``--set``.

Each layer is a list of assignments, a dotted path with a value and the place it came from. What the values mean is not
known here: ``settings.py`` holds the settings.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lodestream.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "LODESTREAM__"
SET_ORIGIN: Final = "--set"

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """``path = value``, as written at ``origin``."""

    path: Path
    value: Any
    origin: str


def read_toml(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The tree in ``text``, and the line (from 1) on which each table and setting first appears.

    Args:
        text: content of the file.
        name: what the file is called in messages.

    Raises:
        ConfigError: ``text`` is not TOML; the message begins with ``name:line``.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{name}{_error_place(text, error)}: not valid TOML: {_error_reason(error)}",
            f'correct that line of {name}; a setting reads `name = "text"`, a section `[name]`',
        ) from None
    return tree, _find_lines(text)


def read_environment(environ: Mapping[str, str]) -> list[Assignment]:
    """One assignment per variable ``LODESTREAM__SECTION__NAME``, in order of name."""
    found = []
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        path = tuple(variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        if not all(path):
            raise ConfigError(
                f"{variable}: not the name of a setting",
                f"write {ENVIRONMENT_PREFIX}SECTION__NAME, such as {ENVIRONMENT_PREFIX}SEGMENT__MAX_TOKENS=256",
            )
        found.append(Assignment(path=path, value=environ[variable], origin=variable))
    return found


def read_overrides(overrides: Sequence[str]) -> list[Assignment]:
    """One assignment per ``section.name=value``; later ones win."""
    found = []
    for override in overrides:
        name, equals, value = override.partition("=")
        path = tuple(part.strip() for part in name.split("."))
        if not equals or not all(path):
            raise ConfigError(
                f"{SET_ORIGIN} {override}: not an assignment",
                f"write {SET_ORIGIN} SECTION.NAME=VALUE, such as {SET_ORIGIN} segment.max_tokens=256",
            )
        found.append(Assignment(path=path, value=value, origin=SET_ORIGIN))
    return found


def flatten(tree: Mapping[str, Any], above: Path = ()) -> list[tuple[Path, Any]]:
    """The leaves of ``tree`` with their paths. An empty table is a leaf."""
    leaves: list[tuple[Path, Any]] = []
    for name, value in tree.items():
        path = (*above, name)
        if isinstance(value, Mapping) and value:
            leaves.extend(flatten(value, path))
        else:
            leaves.append((path, value))
    return leaves


def assign(tree: MutableMapping[str, Any], assignment: Assignment) -> None:
    """Puts the assignment's value into ``tree``, making the tables on the way.

    Raises:
        ConfigError: the path runs through a setting, or ends at a table.
    """
    node = tree
    for depth, name in enumerate(assignment.path[:-1], start=1):
        node = node.setdefault(name, {})
        if not isinstance(node, MutableMapping):
            outer = ".".join(assignment.path[:depth])
            raise ConfigError(
                f"{assignment.origin}: {'.'.join(assignment.path)} does not exist: {outer} is a setting, not a section",
                f"set {outer} itself",
            )
    name = assignment.path[-1]
    present = node.get(name)
    if isinstance(present, Mapping) and present:
        section = ".".join(assignment.path)
        raise ConfigError(
            f"{assignment.origin}: {section} is a section, not a setting",
            f"set one of its settings, such as {section}.{next(iter(present))}",
        )
    node[name] = assignment.value


def _find_lines(text: str) -> dict[Path, int]:
    """Reads ``text`` statement by statement, each under the table header it stands in.

    A statement that runs over several lines does not parse before its last line, so lines are gathered until it does.
    """
    lines: dict[Path, int] = {}
    header = ""
    start = 1
    gathered: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        gathered.append(line)
        statement = "\n".join(gathered)
        is_header = len(gathered) == 1 and line.lstrip().startswith("[")
        try:
            tree = tomllib.loads(statement if is_header else f"{header}\n{statement}")
        except tomllib.TOMLDecodeError:
            continue
        if is_header:
            header = line
        for path, _ in flatten(tree):
            for depth in range(1, len(path) + 1):
                lines.setdefault(path[:depth], start)
        gathered = []
        start = number + 1
    return lines


def _error_place(text: str, error: tomllib.TOMLDecodeError) -> str:
    message = str(error)
    if "(at line " in message:
        return ":" + message.rpartition("(at line ")[2].partition(",")[0]
    last_line = text.rstrip().count("\n") + 1
    return f":{last_line}"  # tomllib says "at end of document"


def _error_reason(error: tomllib.TOMLDecodeError) -> str:
    reason = str(error).rpartition(" (at ")[0] or str(error)
    return reason[:1].lower() + reason[1:]
