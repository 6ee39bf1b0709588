"""A text as lines, and the blocks that scanners find in them: what the three paragraph scanners share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from lodestream.schema import ParagraphKind

TAB_COLUMNS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The lines of a text, without their line ends.

    ``starts``  character offset of each line in the text
    ``raw``     the line as it stands
    ``bare``    the line without white space at both ends; "" for a blank line
    ``indents`` columns of white space before the line's content, tabs expanded
    """

    starts: list[int]
    raw: list[str]
    bare: list[str]
    indents: list[int]

    def __len__(self) -> int:
        return len(self.raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines ``first:end`` of one kind.

    A heading has a ``level`` >= 1, a ``title`` and the place of the title in characters of the text, without the marks
    that make it a heading. Front matter may have a title, too.
    """

    kind: ParagraphKind
    first: int
    end: int
    level: int = 0
    title: str = ""
    title_chars: tuple[int, int] = (0, 0)


def read_lines(text: str) -> Lines:
    """Cuts a text at ``\\n``, ``\\r\\n`` and ``\\r``, and nowhere else."""
    if "\r" in text:  # same length, so that offsets stay those of the original
        text = text.replace("\r\n", " \n").replace("\r", "\n")
    raw = text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in raw[:-1]), initial=0))
    bare = [line.strip() for line in raw]
    indents = [_measure_indent(line) if line[:1].isspace() else 0 for line in raw]
    return Lines(starts=starts, raw=raw, bare=bare, indents=indents)


def _measure_indent(line: str) -> int:
    num_chars = len(line) - len(line.lstrip())
    prefix = line[:num_chars]
    return len(prefix.expandtabs(TAB_COLUMNS)) if "\t" in prefix else num_chars


def span_lines(lines: Lines, first: int, end: int) -> tuple[int, int]:
    """Characters of the lines ``first:end`` without white space at both ends; the first must not be blank."""
    last = end - 1
    while not lines.bare[last]:
        last -= 1
    raw = lines.raw[first]
    start = lines.starts[first] + len(raw) - len(raw.lstrip())
    return start, lines.starts[last] + len(lines.raw[last].rstrip())


def make_heading(lines: Lines, first: int, end: int, *, title_lines: tuple[int, int], level: int) -> Block:
    """A heading on the lines ``first:end`` whose title is the whole of the lines ``title_lines``."""
    title = " ".join(lines.bare[slice(*title_lines)])
    chars = span_lines(lines, *title_lines)
    return Block(kind="heading", first=first, end=end, level=level, title=title, title_chars=chars)


def skip_indented(lines: Lines, at: int, min_indent: int) -> int:
    """End of the run from line ``at`` whose lines are blank or indented by at least ``min_indent`` columns.

    Blank lines at the end do not count in.
    """
    end = at
    for i in range(at, len(lines)):
        if lines.bare[i]:
            if lines.indents[i] < min_indent:
                break
            end = i + 1
    return end


def skip_text(lines: Lines, at: int) -> int:
    """The next blank line at or after ``at``, or the end."""
    end = at
    while end < len(lines) and lines.bare[end]:
        end += 1
    return end


def skip_while(lines: Lines, at: int, belongs: Callable[[str], bool]) -> int:
    """End of the run of non-blank lines from ``at`` whose content satisfies ``belongs``."""
    end = at
    while end < len(lines) and lines.bare[end] and belongs(lines.bare[end]):
        end += 1
    return end


def is_ruler(bare: str, marks: str, min_length: int) -> bool:
    """Whether a line is one of the characters ``marks``, repeated and nothing else."""
    return len(bare) >= min_length and bare[0] in marks and not bare.strip(bare[0])
