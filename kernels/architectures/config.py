"""config.json of a model folder, read with errors that name the file and the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lodestream.errors import ModelError

T = TypeVar("T", int, float, str, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The values of ``path``. A key may have several names (older and newer files): the first that is there counts."""

    path: Path
    values: Mapping[str, Any]

    def find(self, *names: str) -> Any:
        """The value of the first name that is there and not null, else None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def integer(self, *names: str, default: int | None = None) -> int:
        """A whole number of at least 0."""
        value = self._read(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise self.refuse(names[0], value, "no whole number")
        return int(value)

    def number(self, *names: str, default: float | None = None) -> float:
        """A number."""
        value = self._read(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(names[0], value, "no number")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        """true or false."""
        value = self._read(names, default)
        if not isinstance(value, bool):
            raise self.refuse(names[0], value, "neither true nor false")
        return value

    def text(self, *names: str, default: str | None = None) -> str:
        """A string."""
        value = self._read(names, default)
        if not isinstance(value, str):
            raise self.refuse(names[0], value, "no string")
        return value

    def require(self, name: str, *wanted: Any, default: Any = None) -> Any:
        """The value of ``name``, which has to be one of ``wanted``: all else would compute otherwise."""
        value = self.values.get(name)
        value = default if value is None else value
        if value not in wanted:
            raise self.refuse(name, value, f"not supported ({', '.join(repr(w) for w in wanted)} is)")
        return value

    def refuse(self, name: str, value: object, reason: str) -> ModelError:
        """The error to raise for a value that cannot be used."""
        return ModelError(f"{self.path}: {name} = {value!r} is {reason}", "docs/encoder.md lists what is supported")

    def _read(self, names: tuple[str, ...], default: T | None) -> Any:
        value = self.find(*names)
        if value is not None:
            return value
        if default is None:
            raise ModelError(f"{self.path} has no {' or '.join(names)}", "install or copy the model again")
        return default
