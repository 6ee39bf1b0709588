"""Plain text as blocks: blank lines divide, and what looks like a heading, list, code or quote is named so."""

from __future__ import annotations

import re
from typing import Final

from lodestream.actors.lines import Block, Lines, is_ruler, make_heading
from lodestream.schema import ParagraphKind

_ITEM: Final = re.compile(r"(?:[-*+\u2022\u2023\u25e6]|\(?(?:\d{1,3}|[A-Za-z])[.)])[ \t]+(?=\S)")
_INDENT: Final = 3
"""Columns beyond the text's own margin from which a block counts as set off."""
_CODE_MARKS: Final = str.maketrans("", "", "()[]{}<>=;_\\/|$#&%+*^~@`:")
_MIN_CODE_SHARE: Final = 0.06


def scan_plain(lines: Lines) -> list[Block]:
    """The blocks of a plain text, in order; together they hold every line that is not blank."""
    margin = min((indent for indent, bare in zip(lines.indents, lines.bare, strict=True) if bare), default=0)
    blocks: list[Block] = []
    at = 0
    while at < len(lines):
        if not lines.bare[at]:
            at += 1
            continue
        block = _read_heading(lines, at) or _read_list(lines, at) or _read_run(lines, at, margin)
        blocks.append(block)
        at = block.end
    return blocks


def _read_heading(lines: Lines, at: int) -> Block | None:
    """A line with a ruler of about its own length below it."""
    title = lines.bare[at]
    if at + 1 == len(lines) or not lines.bare[at + 1]:
        return None
    ruler = lines.bare[at + 1]
    if not is_ruler(ruler, '=*-~^#"+', 3) or 2 * len(ruler) < len(title) or is_ruler(title, title[0], 1):
        return None
    level = 1 if ruler[0] in "=#*" else 2
    return make_heading(lines, at, at + 2, title_lines=(at, at + 1), level=level)


def _read_list(lines: Lines, at: int) -> Block | None:
    """Items, what is indented under them, and lines that continue an item without a blank line."""
    if not _ITEM.match(lines.bare[at]):
        return None
    indent = lines.indents[at]
    end = at + 1
    after_blank = False
    for i in range(at + 1, len(lines)):
        bare = lines.bare[i]
        if not bare:
            after_blank = True
            continue
        if lines.indents[i] <= indent and after_blank and not (_ITEM.match(bare) and lines.indents[i] == indent):
            break
        end = i + 1
        after_blank = False
    return Block(kind="list", first=at, end=end)


def _read_run(lines: Lines, at: int, margin: int) -> Block:
    end = at + 1
    while end < len(lines) and lines.bare[end]:
        if _read_heading(lines, end) or (_ITEM.match(lines.bare[end]) and _opens_list(lines, end)):
            break
        end += 1
    return Block(kind=_kind_of(lines, at, end, margin), first=at, end=end)


def _opens_list(lines: Lines, at: int) -> bool:
    """Whether a second item follows closely: a lone ``- `` in prose is a dash."""
    for i in range(at + 1, min(at + 6, len(lines))):
        if not lines.bare[i]:
            return False
        if _ITEM.match(lines.bare[i]):
            return True
    return False


def _kind_of(lines: Lines, at: int, end: int, margin: int) -> ParagraphKind:
    if min(lines.indents[at:end]) < margin + _INDENT:
        return "text"
    content = "".join(lines.bare[at:end])
    num_marks = len(content) - len(content.translate(_CODE_MARKS))
    return "code" if num_marks >= _MIN_CODE_SHARE * len(content) else "quote"
