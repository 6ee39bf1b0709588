"""A feature version: one way to compute features, with a table of features and one of documents of its own.

The tables of the version that is served are named by the pointer itself; those of the others, which are prepared or
kept beside it, by records of this module. ``source_state`` says what the sources said, and belongs to no version.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from lodestream.errors import ConfigError

FIRST_VERSION: Final = "v1"
"""What the version that a store begins with is called."""

VERSIONED_TABLES: Final = ("features", "documents")
"""The tables that each version has for itself."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_SLOT: Final = re.compile(r"(?:features|documents)-(.+)\.lance")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVersion:
    """A feature version beside the one that is served.

    ``name``         what people call it
    ``slot``         what its tables' folders are told apart by; "" for the version that the store began with
    ``dim``          width of its vectors
    ``tables``       version of each of its tables
    ``feature_version, recipe``  what its features are made of
    ``model``        where its model was found; a hint, for the recipe names the weights
    ``created_at``   when its tables were made
    ``level``        the snapshot that it was last brought level with; 0 while it never was
    ``served_until`` when another version was promoted in its place; None for one that was never served
    """

    name: str
    slot: str
    dim: int
    tables: dict[str, int]
    feature_version: str
    recipe: dict[str, Any]
    created_at: datetime
    model: str = ""
    level: int = 0
    served_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedSlot:
    """Tables of a version that was dropped: readers may have them open still."""

    slot: str
    dropped_at: datetime


def check_name(name: str) -> str:
    """Return the name of a version.

    Raises:
        ConfigError: it cannot be one.
    """
    if _NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"a feature version cannot be called {name!r}", "use up to 40 letters, digits, dots, dashes and underscores"
    )


def make_slot() -> str:
    """Return a slot that no version had: a writer that slept can do no harm to one that has come since."""
    return secrets.token_hex(4)


def name_folder(table: str, slot: str) -> str:
    """Return the folder of a table of the version in ``slot``."""
    return f"{table}-{slot}.lance" if slot and table in VERSIONED_TABLES else f"{table}.lance"


def read_slot(folder: str) -> str | None:
    """Return the slot in the name of a table's folder; None for tables without one."""
    match = _SLOT.fullmatch(folder)
    return match[1] if match else None
