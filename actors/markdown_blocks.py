"""Markdown as blocks: one pass over the lines, after CommonMark's rules for where a block begins and ends.

Only what decides the borders of paragraphs is read. Inline markup stays as it stands, the inside of lists and quotes is
not taken apart, and no construct is read twice, so that the time is linear in the text.
"""

from __future__ import annotations

import re
from typing import Final

from lodestream.actors.lines import Block, Lines, is_ruler, make_heading, skip_indented, skip_text, skip_while
from lodestream.schema import ParagraphKind

_ATX: Final = re.compile(r"(#{1,6})(?:[ \t]+|$)")
_LIST_ITEM: Final = re.compile(r"(?:[-*+]|\d{1,9}[.)])(?=[ \t]|$)")
_TAG: Final = re.compile(r"</?([A-Za-z][A-Za-z0-9-]*)(?=[\s/>]|$)")
_LINK_TARGET: Final = re.compile(r"\[[^\]\[]{1,200}\]:[ \t]*\S")
_FRONT_TITLE: Final = re.compile(r"title[ \t]*[:=][ \t]*(.*)", re.IGNORECASE)

_OPENERS: Final = frozenset("#`~><-*+_[") | frozenset("0123456789")
_CODE_TAGS: Final = frozenset(("pre", "script", "style", "textarea"))
_BLOCK_TAG_NAMES: Final = """
address article aside blockquote body center details dialog dd dir div dl dt fieldset figcaption figure footer form h1
h2 h3 h4 h5 h6 head header hr html iframe img li link main menu nav ol option p picture section source summary table
tbody td tfoot th thead title tr ul br a
"""
_BLOCK_TAGS: Final = frozenset(_BLOCK_TAG_NAMES.split())
_LONGEST_SETEXT_CHARS: Final = 300
_CODE_INDENT: Final = 4


def scan_markdown(lines: Lines) -> list[Block]:
    """The blocks of a Markdown text, in order; together they hold every line that is not blank."""
    blocks: list[Block] = []
    at = 0
    front = _read_front_matter(lines)
    if front:
        blocks.append(front)
        at = front.end
    while at < len(lines):
        if not lines.bare[at]:
            at += 1
            continue
        block = _read_block(lines, at)
        blocks.append(block)
        at = block.end
    return blocks


def _read_block(lines: Lines, at: int) -> Block:
    if lines.indents[at] >= _CODE_INDENT:
        return Block(kind="code", first=at, end=skip_indented(lines, at, _CODE_INDENT))
    bare = lines.bare[at]
    if bare[0] in _OPENERS:
        block = _read_marked(lines, at, bare)
        if block:
            return block
    return _read_prose(lines, at)


def _read_marked(lines: Lines, at: int, bare: str) -> Block | None:
    """The block that the first character of line ``at`` announces, if it keeps its word."""
    match bare[0]:
        case "#":
            return _read_atx(lines, at, bare)
        case "`" | "~":
            return Block(kind="code", first=at, end=skip_fence(lines, at)) if is_fence(bare) else None
        case ">":
            return Block(kind="quote", first=at, end=_skip_lazily(lines, at))
        case "<":
            return _read_html(lines, at, bare)
        case "[":
            end = skip_while(lines, at, lambda line: bool(_LINK_TARGET.match(line)) and not line.startswith("[^"))
            return Block(kind="markup", first=at, end=end) if end > at else None
    if _is_thematic_break(bare):
        return Block(kind="markup", first=at, end=at + 1)
    if _LIST_ITEM.match(bare):
        return Block(kind="list", first=at, end=_skip_list(lines, at))
    return None


def _read_front_matter(lines: Lines) -> Block | None:
    fence = lines.raw[0].rstrip()
    if fence not in ("---", "+++"):
        return None
    title = ""
    for i in range(1, len(lines)):
        line = lines.raw[i].rstrip()
        if line == fence or (fence == "---" and line == "..."):
            return Block(kind="markup", first=0, end=i + 1, title=title)
        match = _FRONT_TITLE.match(line)
        if match and not title:
            title = match[1].strip().strip("\"'")
    return None


def _read_atx(lines: Lines, at: int, bare: str) -> Block | None:
    match = _ATX.match(bare)
    if not match:
        return None
    title = bare[match.end() :].lstrip()
    unclosed = title.rstrip("#")
    if not unclosed or unclosed[-1] in " \t":
        title = unclosed.rstrip()
    if not title:
        return Block(kind="markup", first=at, end=at + 1)
    start = lines.starts[at] + lines.raw[at].index(title, lines.raw[at].index("#") + len(match[1]))
    chars = (start, start + len(title))
    return Block(kind="heading", first=at, end=at + 1, level=len(match[1]), title=title, title_chars=chars)


def is_fence(bare: str) -> bool:
    """Whether a line opens fenced code."""
    if bare.startswith("```"):
        return "`" not in bare.lstrip("`")
    return bare.startswith("~~~")


def skip_fence(lines: Lines, at: int) -> int:
    """The line after the fence that closes the one at line ``at``; the end of the text if none does."""
    mark = lines.bare[at][0]
    length = _fence_length(lines.bare[at])
    for i in range(at + 1, len(lines)):
        if lines.indents[i] < _CODE_INDENT and lines.bare[i] and is_ruler(lines.bare[i], mark, length):
            return i + 1
    return len(lines)


def _fence_length(bare: str) -> int:
    return len(bare) - len(bare.lstrip(bare[0]))


def _read_html(lines: Lines, at: int, bare: str) -> Block | None:
    if bare.startswith("<!--"):
        return Block(kind="markup", first=at, end=_skip_past(lines, at, "-->"))
    match = _TAG.match(bare)
    if not match:
        return None
    tag = match[1].lower()
    if tag in _CODE_TAGS and bare[1] != "/":
        kind: ParagraphKind = "code" if tag == "pre" else "markup"
        return Block(kind=kind, first=at, end=_skip_past(lines, at, f"</{tag}>"))
    if tag in _BLOCK_TAGS:
        return Block(kind="markup", first=at, end=skip_text(lines, at))
    return None


def _skip_past(lines: Lines, at: int, closing: str) -> int:
    """The line after the first one that holds ``closing``; the end of the text if none does."""
    for i in range(at, len(lines)):
        if closing in lines.raw[i].lower():
            return i + 1
    return len(lines)


def _is_thematic_break(bare: str) -> bool:
    return bare[0] in "-*_" and is_ruler(bare.replace(" ", "").replace("\t", ""), "-*_", 3)


def _interrupts_prose(lines: Lines, at: int) -> bool:
    """Whether line ``at`` ends a paragraph although no blank line stands before it."""
    bare = lines.bare[at]
    if bare[0] not in _OPENERS or bare[0] == "[" or lines.indents[at] >= _CODE_INDENT:
        return False
    if bare[0] in "0123456789":  # a number only opens a list in the middle of prose if it is 1
        return bare.startswith(("1. ", "1) "))
    match bare[0]:
        case "#":
            return bool(_ATX.match(bare))
        case "`" | "~":
            return is_fence(bare)
        case ">":
            return True
        case "<":
            match = _TAG.match(bare)
            return bare.startswith("<!--") or bool(match and match[1].lower() in _CODE_TAGS | _BLOCK_TAGS - {"a", "br"})
    return _is_thematic_break(bare) or (len(bare) > 1 and bool(_LIST_ITEM.match(bare)))


def _skip_lazily(lines: Lines, at: int) -> int:
    """End of a quote: its own lines and those that continue it without a mark."""
    end = at + 1
    while end < len(lines) and lines.bare[end]:
        if lines.bare[end][0] != ">" and _interrupts_prose(lines, end):
            break
        end += 1
    return end


def _skip_list(lines: Lines, at: int) -> int:
    """End of a list: its items, what is indented under them, and lines that continue an item lazily."""
    base = lines.indents[at]
    end = at + 1
    after_blank = False
    fence = _opened_fence(_LIST_ITEM.sub("", lines.bare[at], count=1).lstrip())
    for i in range(at + 1, len(lines)):
        bare = lines.bare[i]
        if not bare:
            after_blank = True
            continue
        inside = lines.indents[i] >= base + 2
        if fence and inside:
            if is_ruler(bare, fence[0], len(fence)):
                fence = ""
        else:
            if not inside and not _continues_list(lines, i, after_blank):
                break
            fence = _opened_fence(bare)
        end = i + 1
        after_blank = False
    return end


def _opened_fence(content: str) -> str:
    return content[0] * _fence_length(content) if content and is_fence(content) else ""


def _continues_list(lines: Lines, at: int, after_blank: bool) -> bool:
    bare = lines.bare[at]
    if bare[0] in "-*+0123456789" and _LIST_ITEM.match(bare):
        return not _is_thematic_break(bare)
    return not after_blank and not _interrupts_prose(lines, at)


def _is_delimiter_row(bare: str) -> bool:
    return "-" in bare and "|" in bare and not bare.strip("|:- \t")


def _read_prose(lines: Lines, at: int) -> Block:
    """A paragraph, or the heading or table that its next lines turn it into."""
    end = at
    num_chars = 0
    while end < len(lines) and lines.bare[end]:
        bare = lines.bare[end]
        if end > at:
            if num_chars <= _LONGEST_SETEXT_CHARS and lines.indents[end] < _CODE_INDENT and is_ruler(bare, "=-", 1):
                level = 1 if bare[0] == "=" else 2
                return make_heading(lines, at, end + 1, title_lines=(at, end), level=level)
            if _interrupts_prose(lines, end):
                break
        if "|" in bare and end + 1 < len(lines) and _is_delimiter_row(lines.bare[end + 1]):
            if end > at:
                break
            return Block(kind="table", first=at, end=skip_while(lines, at, lambda line: "|" in line))
        num_chars += len(bare)
        end += 1
    return Block(kind="text", first=at, end=end)
