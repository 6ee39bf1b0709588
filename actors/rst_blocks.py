"""reStructuredText as blocks: one pass over the lines, after the rules of Docutils for where blocks end."""

from __future__ import annotations

import re
from typing import Final

from lodestream.actors.lines import Block, Lines, is_ruler, make_heading, skip_indented, skip_text
from lodestream.schema import ParagraphKind

_PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_BULLET: Final = re.compile(r"[-*+\u2022\u2023\u2043](?=[ \t]|$)")
_ENUMERATOR: Final = re.compile(
    r"(?:\(?(?:\d{1,9}|[A-Za-z]|#|[ivxlcdm]{1,8}|[IVXLCDM]{1,8})\)|(?:\d{1,9}|[A-Za-z]|#)\.)(?=[ \t])"
)
_FIELD: Final = re.compile(r":(?![: ])[^:\n]{1,80}:(?=[ \t]|$)")
_HEADER: Final = re.compile(r"([A-Za-z][\w-]{0,40}):(?=[ \t]|$)")
_DIRECTIVE: Final = re.compile(r"\.\.[ \t]+(?:\|[^|]{1,100}\|[ \t]+)?([A-Za-z][\w:.+-]{0,60}?)[ \t]?::(?=[ \t]|$)")
_FOOTNOTE: Final = re.compile(r"\.\.[ \t]+\[[^\]]{1,100}\](?=[ \t]|$)")
_SIMPLE_BORDER: Final = re.compile(r"=+(?:[ \t]+=+)+$")

_CODE_NAMES: Final = """
code code-block sourcecode literalinclude parsed-literal math doctest testcode testsetup testoutput highlight
productionlist grammar-snippet graphviz digraph prompt ipython jupyter-execute plot command-output
"""
_MARKUP_NAMES: Final = """
image include raw toctree contents sectnum index default-role role meta currentmodule module highlightlang replace
unicode date class container only ifconfig autosummary automodule autoclass autofunction
"""
_CODE_DIRECTIVES: Final = frozenset(_CODE_NAMES.split())
_MARKUP_DIRECTIVES: Final = frozenset(_MARKUP_NAMES.split())
_TABLE_DIRECTIVES: Final = frozenset(("table", "csv-table", "list-table", "tabularcolumns"))


class RstScanner:
    """Reads one text. The levels of headings are those of first appearance of their rulers, which makes it stateful."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._styles: list[str] = []
        self._no_table_end_after = len(lines)
        self._body_indent = 0

    def scan(self) -> list[Block]:
        """The blocks of the text, in order; together they hold every line that is not blank."""
        lines = self._lines
        blocks: list[Block] = []
        at = 0
        while at < len(lines):
            if not lines.bare[at]:
                at += 1
                continue
            block = (self._read_header(at) if not blocks else None) or self._read_block(at)
            blocks.append(block)
            at = block.end
            if block.kind == "text" and lines.bare[at - 1].endswith("::") and not lines.bare[at - 1].startswith(".. "):
                literal = self._read_literal(at, block)
                if literal:
                    blocks.append(literal)
                    at = literal.end
        return blocks

    def _read_block(self, at: int) -> Block:
        lines = self._lines
        bare = lines.bare[at]
        if lines.indents[at] < self._body_indent:
            self._body_indent = 0
        if bare.startswith((".. ", "__ ")) or bare in ("..", "__"):
            return self._read_explicit(at, bare)
        return (
            self._read_heading(at, bare)
            or self._read_table(at, bare)
            or self._read_list(at, bare)
            or self._read_prose(at, bare)
        )

    def _read_header(self, at: int) -> Block | None:
        """Document information at the top: ``:Author: ...`` or, as in mail, ``Author: ...``."""
        lines = self._lines
        pattern = _FIELD if lines.bare[at][0] == ":" else _HEADER
        end = at
        title = ""
        num_fields = 0
        while end < len(lines) and lines.bare[end]:
            bare = lines.bare[end]
            if lines.indents[end] == 0 or end == at:
                if not pattern.match(bare):
                    return None
                num_fields += 1
                name, _, value = bare.strip(":").partition(":")
                if name.lower() == "title" and not title:
                    title = value.strip()
            end += 1
        if num_fields < 2 and pattern is _HEADER:
            return None
        return Block(kind="markup", first=at, end=end, title=title)

    def _read_explicit(self, at: int, bare: str) -> Block:
        """A directive, footnote, link target, substitution or comment."""
        lines = self._lines
        indent = lines.indents[at]
        match = _DIRECTIVE.match(bare)
        if match:
            kind = _directive_kind(match[1])
            if kind == "text":
                return self._read_admonition(at)
            return Block(kind=kind, first=at, end=skip_indented(lines, at + 1, indent + 1))
        kind = "text" if _FOOTNOTE.match(bare) else "markup"
        end = skip_indented(lines, at + 1, indent + 1)
        while kind == "markup" and end < len(lines) and lines.bare[end].startswith((".. _", "__ ")):
            end = skip_indented(lines, end + 1, indent + 1)
        return Block(kind=kind, first=at, end=end)

    def _read_admonition(self, at: int) -> Block:
        """A directive that holds prose: its first lines, with the first paragraph where a blank line divides them.

        What follows under the same indent is read as blocks of their own.
        """
        lines = self._lines
        indent = lines.indents[at]
        end = skip_text(lines, at)
        only_options = all(lines.bare[i][0] == ":" for i in range(at + 1, end))
        body = end
        while body < len(lines) and not lines.bare[body]:
            body += 1
        if body < len(lines) and lines.indents[body] > indent:
            self._body_indent = lines.indents[body]
            bare_directive = lines.bare[at].endswith("::") and only_options
            if bare_directive and not _opens_block(lines.bare[body]):
                end = skip_text(lines, body)
        return Block(kind="text", first=at, end=end)

    def _read_heading(self, at: int, bare: str) -> Block | None:
        lines = self._lines
        last = len(lines) - 1
        if bare[0] in _PUNCTUATION and is_ruler(bare, _PUNCTUATION, 2):
            if at + 2 <= last and lines.bare[at + 1] and lines.bare[at + 2] == bare and len(bare) >= 3:
                return self._make_heading(at, at + 3, at + 1, bare[0] * 2)
            if len(bare) >= 4 and (at == last or not lines.bare[at + 1]):
                return Block(kind="markup", first=at, end=at + 1)
            return None
        if at == last or lines.indents[at]:
            return None
        ruler = lines.bare[at + 1]
        if ruler and lines.indents[at + 1] == 0 and is_ruler(ruler, _PUNCTUATION, min(len(bare), 4)):
            return self._make_heading(at, at + 2, at, ruler[0])
        return None

    def _make_heading(self, first: int, end: int, title_line: int, style: str) -> Block:
        if style not in self._styles:
            self._styles.append(style)
        level = self._styles.index(style) + 1
        return make_heading(self._lines, first, end, title_lines=(title_line, title_line + 1), level=level)

    def _read_table(self, at: int, bare: str) -> Block | None:
        lines = self._lines
        if bare.startswith(("+-", "+=")) and bare.endswith("+"):
            end = at
            while end < len(lines) and lines.bare[end] and lines.bare[end][0] in "+|":
                end += 1
            return Block(kind="table", first=at, end=end)
        if bare[0] == "=" and _SIMPLE_BORDER.match(bare):
            end = self._find_table_end(at + 1)
            return Block(kind="table", first=at, end=end) if end else None
        return None

    def _find_table_end(self, at: int) -> int:
        """The line after a border that a blank line follows; 0 if there is none (remembered: searched for once)."""
        lines = self._lines
        if at >= self._no_table_end_after:
            return 0
        for i in range(at, len(lines)):
            bare = lines.bare[i]
            if bare and bare[0] == "=" and not bare.strip("= \t") and (i + 1 == len(lines) or not lines.bare[i + 1]):
                return i + 1
        self._no_table_end_after = at
        return 0

    def _read_list(self, at: int, bare: str) -> Block | None:
        style = _item_style(bare)
        if not style or not self._keeps_item_shape(at):
            return None
        lines = self._lines
        indent = lines.indents[at]
        end = at + 1
        for i in range(at + 1, len(lines)):
            line = lines.bare[i]
            if not line:
                continue
            if lines.indents[i] < indent or (lines.indents[i] == indent and _item_style(line) != style):
                break
            end = i + 1
        return Block(kind="list", first=at, end=end)

    def _keeps_item_shape(self, at: int) -> bool:
        """Whether the line after an item's first is blank, indented under it, or another item."""
        lines = self._lines
        if at + 1 >= len(lines) or not lines.bare[at + 1]:
            return True
        return lines.indents[at + 1] > lines.indents[at] or bool(_item_style(lines.bare[at + 1]))

    def _read_literal(self, at: int, before: Block) -> Block | None:
        """The indented block that ``::`` at the end of a paragraph announces."""
        lines = self._lines
        first = at
        while first < len(lines) and not lines.bare[first]:
            first += 1
        indent = lines.indents[before.first]
        if first == at or first == len(lines) or lines.indents[first] <= indent:
            return None
        return Block(kind="code", first=first, end=skip_indented(lines, first, indent + 1))

    def _read_prose(self, at: int, bare: str) -> Block:
        lines = self._lines
        if bare.startswith(">>> "):
            return Block(kind="code", first=at, end=skip_text(lines, at))
        indent = lines.indents[at]
        quoted = indent > self._body_indent
        end = at + 1
        while end < len(lines) and lines.bare[end]:
            if lines.indents[end] <= indent and (lines.bare[end].startswith(".. ") or self._starts_heading(end)):
                break
            quoted = quoted and lines.indents[end] >= indent
            end += 1
        return Block(kind="quote" if quoted else "text", first=at, end=end)

    def _starts_heading(self, at: int) -> bool:
        """Whether an underlined title of a style seen before stands here, in the middle of a run of lines."""
        if at + 1 >= len(self._lines) or not self._lines.bare[at + 1]:
            return False
        ruler = self._lines.bare[at + 1]
        return ruler[0] in self._styles and is_ruler(ruler, _PUNCTUATION, max(4, len(self._lines.bare[at])))


def scan_rst(lines: Lines) -> list[Block]:
    """The blocks of a reStructuredText text, in order; together they hold every line that is not blank."""
    return RstScanner(lines).scan()


def _item_style(bare: str) -> str:
    """What kind of list a line is an item of: its bullet, "1" or ":"; "" if it is none."""
    if _BULLET.match(bare):
        return bare[0]
    if _ENUMERATOR.match(bare):
        return "1"
    return ":" if bare[0] == ":" and _FIELD.match(bare) else ""


def _opens_block(bare: str) -> bool:
    return bare.startswith((".. ", "+-", "+=", "==", ">>> ")) or bool(_item_style(bare))


def _directive_kind(name: str) -> ParagraphKind:
    name = name.lower()
    if name in _CODE_DIRECTIVES:
        return "code"
    if name in _TABLE_DIRECTIVES:
        return "table"
    return "markup" if name in _MARKUP_DIRECTIVES else "text"
