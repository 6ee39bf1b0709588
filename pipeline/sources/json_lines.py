"""Rows of JSON Lines files: one object a line, found by where the line begins and how long it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lodestream.errors import DocumentError
from lodestream.pipeline.sources.rows import RawRow

_MARK = b"\xef\xbb\xbf"
_SHOWN_CHARS = 60


def scan_lines(path: str, id_column: str, text_column: str) -> Iterator[RawRow]:
    """All lines of a file that are not blank, in order; ``place`` is a line's offset, length and number (from 1).

    A line that is no object with the two members is a row with a ``failure``; the others go on.

    Raises:
        OSError: the file cannot be read.
    """
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            place = (offset, len(line), number)
            offset += len(line)
            if line.strip():
                yield _read_line(line, place, id_column, text_column)


def read_line(path: str, place: tuple[int, int, int], id_column: str, text_column: str) -> RawRow | None:
    """The line at a place; None where there is none any more.

    Raises:
        OSError: the file cannot be read.
    """
    offset, length, _ = place
    if not Path(path).exists():
        return None
    with open(path, "rb") as file:
        file.seek(offset)
        line = file.read(length)
    return _read_line(line, place, id_column, text_column) if len(line) == length else None


def _read_line(line: bytes, place: tuple[int, int, int], id_column: str, text_column: str) -> RawRow:
    try:
        row_id, text = _take_members(line.removeprefix(_MARK), id_column, text_column)
    except DocumentError as error:
        return RawRow(id=None, text=line, place=place, failure=f"{error.message}; {error.hint}")
    return RawRow(id=row_id, text=text, place=place)


def _take_members(line: bytes, id_column: str, text_column: str) -> tuple[int | str, bytes]:
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}", "write the line in UTF-8") from None
    except ValueError as error:
        raise DocumentError(f"not JSON: {error}", "mend the line") from None
    except RecursionError:
        raise DocumentError("JSON nested too deeply", "mend the line") from None
    if not isinstance(value, dict):
        raise DocumentError(f"no object but {str(value)[:_SHOWN_CHARS]}", 'write {"id": ..., "text": ...}')
    for column in (id_column, text_column):
        if column not in value:
            raise DocumentError(f"no member {column!r}", "mend the line, or name another column")
    row_id, text = value[id_column], value[text_column]
    if isinstance(row_id, bool) or not isinstance(row_id, int | str) or row_id == "":
        raise DocumentError(f"the id is {str(row_id)[:_SHOWN_CHARS]!r}", "an id is a whole number or a text")
    if text is not None and not isinstance(text, str):
        raise DocumentError(f"{text_column} is {type(text).__name__}, not text", "mend the line")
    try:
        return row_id, (text or "").encode()
    except UnicodeEncodeError:
        raise DocumentError(f"{text_column} holds half of a surrogate pair", "mend the line") from None
