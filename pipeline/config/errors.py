"""Turns what pydantic says about a configuration into messages that name the setting, its origin and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lodestream.errors import ConfigError
from lodestream.pipeline.config.sources import SOURCE_KINDS

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_WANTED = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be text in quotes",
    "tuple": 'must be a list of texts, such as ["**/*.md"]',
    "model": "must be a section of settings",
    "dict": "must be a section of settings",
}
_REPR_CHARS = 60


def describe_errors(
    error: ValidationError, model: type[BaseModel], origins: Mapping[tuple[str, ...], str]
) -> ConfigError:
    """One ``ConfigError`` for all that is wrong.

    Args:
        error: what validating against ``model`` raised.
        model: the whole tree.
        origins: place of each path that was set; a path without one is missing, or its section names the place.
    """
    messages = []
    hints = []
    for problem in error.errors(include_url=False):
        path = _strip_kind(tuple(problem["loc"]), problem["type"])
        message, hint = _describe(problem, path, model)
        origin = _find_origin(path, origins)
        messages.append(f"{origin}: {message}" if origin else message)
        if hint not in hints:
            hints.append(hint)
    return ConfigError("\n".join(messages), "; ".join(hints))


def _describe(problem: Mapping[str, Any], path: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, str]:
    name = _write_path(path)
    kind: str = problem["type"]
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _describe_unknown(path, _section_above(tuple(problem["loc"]), model), model)
    if kind == "missing":
        if path == ("sources",):
            return "no source of documents is configured", "lodestream init PATH, or write a section [sources.docs]"
        return f"{name} is missing", f"write {name} = ..."
    if path[-1:] == ("[key]",):
        return (
            f"{_write_path(path[:-1])}: a source's name is made of a-z, 0-9, and single - or _ between them",
            "rename the source",
        )
    if kind.startswith("union_tag"):
        kinds = ", ".join(map(repr, SOURCE_KINDS))
        return f"{name} must be one of {kinds}{_say_given(kind, problem['input'].get('kind'))}", f"correct {name}"
    if kind == "too_short":
        return "no source of documents is configured", "lodestream init PATH, or write a section [sources.docs]"
    if kind == "value_error" and not str(context["error"]).startswith("must"):  # two settings of a section disagree
        return f"{name}.{context['error']}", f"correct section {name}"
    return f"{name} {_say_wanted(kind, context)}{_say_given(kind, problem['input'])}", f"correct {name}"


def _say_wanted(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']:g}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "value_error":
        return str(context["error"])
    return _WANTED.get(kind.rpartition("_")[0], _WANTED.get(kind, "has a wrong value"))


def _say_given(kind: str, given: Any) -> str:
    if kind in ("value_error", "string_too_short"):
        return ""
    shown = str(given).lower() if isinstance(given, bool) else repr(given)
    return f", not {shown}" if len(shown) <= _REPR_CHARS else f", not {shown[:_REPR_CHARS]}..."


def _describe_unknown(path: tuple[str | int, ...], section: Any, model: type[BaseModel]) -> tuple[str, str]:
    known = list(section.model_fields)
    above, wrong = path[:-1], str(path[-1])
    message = f"{_write_path(path)} is not a setting"
    near = difflib.get_close_matches(wrong, known, n=1)
    meant = [(*above, name) for name in near] or [place for place in _all_settings(model) if place[-1] == wrong]
    if meant:
        return f"{message}; did you mean {_write_path(meant[0])}?", f"write {_write_path(meant[0])}"
    return message, f"{_write_path(above) or 'the file'} has: {', '.join(known)}"


def _strip_kind(path: tuple[str | int, ...], kind: str) -> tuple[str | int, ...]:
    """pydantic puts a source's kind between its name and its settings, and names no setting where it is the kind that
    is wrong."""
    if kind.startswith("union_tag"):
        return (*path, "kind")
    if path[0] == "sources" and len(path) > 2 and path[2] in SOURCE_KINDS:
        return (*path[:2], *path[3:])
    return path


def _section_above(loc: tuple[str | int, ...], model: type[BaseModel]) -> Any:
    """The section of settings in which the last part of pydantic's ``loc`` stands."""
    if loc[0] == "sources":
        return SOURCE_KINDS[str(loc[2])]
    section: Any = model
    for part in loc[:-1]:
        section = section.model_fields[part].annotation
    return section


def _all_settings(section: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not hasattr(section, "model_fields"):
        return [above]
    found = []
    for name, field in section.model_fields.items():
        found.extend(_all_settings(field.annotation, (*above, name)))
    return found


def _find_origin(path: tuple[str | int, ...], origins: Mapping[tuple[str, ...], str]) -> str:
    named = tuple(str(part) for part in path)
    for depth in range(len(named), 0, -1):
        if named[:depth] in origins:
            return origins[named[:depth]]
    return next((origin for place, origin in origins.items() if place[: len(named)] == named), "")


def _write_path(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
