"""Names of tables and columns in SQL. Values never stand in a query's text."""

from __future__ import annotations

import re
from typing import Final

_PART: Final = re.compile(r'"((?:[^"]|"")+)"|([^".\x00]+)')


def split_table(table: str) -> tuple[str, ...]:
    """The parts of ``schema.table``, taken as they are written; a part with a dot stands in double quotes.

    Raises:
        ValueError: it is no such name.
    """
    parts: list[str] = []
    at = 0
    while match := _PART.match(table, at):
        parts.append(match[1].replace('""', '"') if match[1] is not None else match[2])
        at = match.end()
        if at == len(table) or table[at] != ".":
            break
        at += 1
    if at != len(table) or not 1 <= len(parts) <= 2 or table.endswith("."):
        raise ValueError('must be a name such as "docs" or "app.docs"')
    return tuple(parts)


def check_table(table: str) -> str:
    """``table`` if it is the name of one.

    Raises:
        ValueError: it is not.
    """
    split_table(table)
    return table


def quote_table(table: str) -> str:
    """``table`` as SQL."""
    return ".".join(quote_name(part) for part in split_table(table))


def quote_name(name: str) -> str:
    """An identifier as SQL: whatever it holds, it stays one."""
    return '"' + name.replace("\x00", "").replace('"', '""') + '"'
