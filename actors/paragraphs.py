"""Paragraphs of a text with their exact place: headings, prose, lists, tables, code, quotes and markup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from lodestream.actors.lines import Block, Lines, read_lines, span_lines
from lodestream.actors.markdown_blocks import scan_markdown
from lodestream.actors.plain_blocks import scan_plain
from lodestream.actors.rst_blocks import scan_rst
from lodestream.schema import ParagraphKind

TextFormat = Literal["markdown", "rst", "text"]

_FORMATS: Final[dict[str, TextFormat]] = {".md": "markdown", ".markdown": "markdown", ".rst": "rst"}
_SCANNERS: Final[dict[TextFormat, Callable[[Lines], list[Block]]]] = {
    "markdown": scan_markdown,
    "rst": scan_rst,
    "text": scan_plain,
}
_MAX_TITLE_CHARS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """One block of a text.

    ``char_start, char_end``  half-open, without white space at either end
    ``heading_path``          titles of the headings above it, outermost first; a heading's own title is not in it
    ``title``                 of a heading its own title, of front matter the document's; else ""
    """

    kind: ParagraphKind
    char_start: int
    char_end: int
    heading_path: tuple[str, ...]
    title: str = ""


def text_format_of(path: str) -> TextFormat:
    """The format that a file's extension names; "text" for any that is not known."""
    return _FORMATS.get(PurePosixPath(path).suffix.lower(), "text")


def split_paragraphs(text: str, text_format: TextFormat) -> list[Paragraph]:
    """The paragraphs of a text, in order.

    Args:
        text: any string.
        text_format: decides the rules.

    Returns:
        Paragraphs that do not overlap and hold every character that is neither white space nor the mark of a heading
        (``##``, a ruler under or over the title): a heading's span is its title.

    Cost:
        Linear in the text.
    """
    lines = read_lines(text)
    headings: list[tuple[int, str]] = []
    path: tuple[str, ...] = ()
    paragraphs: list[Paragraph] = []
    for block in _SCANNERS[text_format](lines):
        if block.kind == "heading":
            while headings and headings[-1][0] >= block.level:
                headings.pop()
            path = tuple(title for _, title in headings)
        start, end = block.title_chars if block.kind == "heading" else span_lines(lines, block.first, block.end)
        title = block.title[:_MAX_TITLE_CHARS]
        paragraphs.append(Paragraph(kind=block.kind, char_start=start, char_end=end, heading_path=path, title=title))
        if block.kind == "heading":
            headings.append((block.level, title))
            path = (*path, title)
    return paragraphs
