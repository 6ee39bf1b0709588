"""Sentences of a paragraph: by punctuation in prose, by item in lists, by row in tables, by group of lines in code.

Every function here is linear in the text: the patterns are possessive or start only where a run of marks starts, so
that no input makes them look at a character more than a few times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from lodestream.schema import ParagraphKind

Span = tuple[int, int]

_CLOSERS: Final = "\"'\u201d\u2019\u00bb\u203a)\\]}*_`"
_CJK_CLOSERS: Final = "\u300d\u300f\u201d\u2019\uff09)\u3011\u3009\u300b\\]\u3015\"'"
_MARKS: Final = ".!?\u2026\u203c\u2047-\u2049\u0964\u0965\u061f\u06d4\u0589\u1362\u1367\u1368"
_STOP: Final = re.compile(
    rf"(?<![{_MARKS}])[{_MARKS}]++[{_CLOSERS}]*+(?=\s)|[\u3002\uff01\uff1f\uff61]++[{_CJK_CLOSERS}]*+"
)
"""A candidate: marks with closing quotes or brackets before white space; or CJK marks, which need none."""

_PARTICLES: Final = "\u3068\u306e\u304c\u3092\u306b\u3067\u3082\u3001\u3002\uff0c"

_ITEM: Final = re.compile(
    r"^[ \t]*+(?:[-*+\u2022\u2023\u2043]|\(?(?:\d{1,9}|[A-Za-z#])[.)]|:[^:\n]{1,80}:)(?=[ \t])", re.MULTILINE
)
_INITIALS: Final = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
_WORD: Final = re.compile(r"\w", re.UNICODE)

_NEVER_LAST_WORDS: Final = """
dr mr mrs ms mx prof st sr fr rev hon gen lt sgt capt gov sen fig figs eq eqs sec secs ch chs pp vol vols nos ed eds cf
vs viz approx ca resp incl excl esp e.g i.e eg ie a.k.a w.r.t wrt mt dept univ assn thm jan feb mar apr jun jul aug sep
sept oct nov dec bzw z.b d.h u.a evtl ggf nr p.ej m.a.w
"""
_SOMETIMES_LAST_WORDS: Final = "al etc inc ltd co corp jr llc bros a.m p.m est misc ph.d b.c a.d u.s u.k e.u"
_NEVER_LAST: Final = frozenset(_NEVER_LAST_WORDS.split())
"""Abbreviations that something always follows."""
_SOMETIMES_LAST: Final = frozenset(_SOMETIMES_LAST_WORDS.split())
"""Abbreviations that may also end a sentence: then a capital follows."""

_LONG_ITEM_CHARS: Final = 240
_LONG_CODE_CHARS: Final = 1200
_CODE_GROUP_CHARS: Final = 600


def split_sentences(text: str, char_start: int, char_end: int, kind: ParagraphKind) -> list[Span]:
    """The sentences of one paragraph.

    Args:
        text: the document.
        char_start, char_end: the paragraph's span in it.
        kind: decides the rule.

    Returns:
        Spans in characters of ``text``, in order, without white space at either end; together they hold every
        character of the paragraph that is not white space.

    Cost:
        Linear in the paragraph.
    """
    if kind == "heading" or char_end - char_start <= 1:
        return _trim(text, [char_start, char_end])
    if kind == "list":
        return _trim(text, _cut_list(text, char_start, char_end))
    if kind == "table":
        return _trim(text, _cut_rows(text, char_start, char_end))
    if kind in ("code", "markup"):
        return _trim(text, _cut_code(text, char_start, char_end))
    return _trim(text, [char_start, *_find_stops(text, char_start, char_end), char_end])


def split_lines(text: str, char_start: int, char_end: int) -> list[Span]:
    """The lines of a span that are not blank."""
    return _trim(text, [char_start, *_find_line_starts(text, char_start, char_end), char_end])


def _trim(text: str, cuts: list[int]) -> list[Span]:
    """Spans between neighbouring cuts, without white space around them and without empty ones."""
    spans: list[Span] = []
    for start, end in pairwise(cuts):
        part = text[start:end]
        length = len(part.rstrip())
        if length:
            spans.append((end - len(part.lstrip()), start + length))
    return spans


def _find_stops(text: str, start: int, end: int) -> Iterator[int]:
    """Offsets at which a sentence of prose ends."""
    sentence_start = start
    for match in _STOP.finditer(text, start, end):
        if match.end() < end and _is_stop(text, match, sentence_start, end):
            sentence_start = match.end()
            yield sentence_start


def _is_stop(text: str, match: re.Match[str], sentence_start: int, end: int) -> bool:
    mark = text[match.start()]
    if mark in "\u3002\uff01\uff1f\uff61":  # speech that its sentence goes on after: a particle follows the bracket
        return text[match.end() - 1] not in "\u300d\u300f\uff09" or text[match.end()] not in _PARTICLES
    following = _peek(text, match.end(), end)
    if following.islower() or following in ",;:)]":
        return False
    if mark != "." or text[match.start() + 1] in _MARKS:  # the pattern looks ahead: a character follows
        return True
    return not _is_abbreviation(text, sentence_start, match.start(), following)


def _peek(text: str, at: int, end: int) -> str:
    """First character after white space that is no opening quote, bracket or emphasis; at most a few are looked at."""
    for char in text[at : min(at + 40, end)].lstrip()[:4]:
        if char not in "\"'(\u201c\u2018\u00ab[*_`":
            return char
    return " "


def _is_abbreviation(text: str, sentence_start: int, stop: int, following: str) -> bool:
    """Whether the full stop at ``stop`` belongs to the word before it."""
    before = text[max(sentence_start, stop - 24) : stop]
    words = before.rsplit(None, 1)
    if not words or before[-1].isspace():
        return False
    word = words[-1].lstrip("\"'(\u201c\u2018\u00ab[*_`<{")
    if not word:
        return False
    if stop - sentence_start <= 24 and (word.isdigit() or len(word) == 1) and before.strip() == word:
        return True  # a number or letter that opens the sentence: "1. First"
    lower = word.lower()
    if lower in _NEVER_LAST:
        return True
    if lower in _SOMETIMES_LAST:
        return not following.isupper()
    if lower == "no":
        return following.isdigit()
    return bool(_INITIALS.fullmatch(word)) and ("." in word or word.isupper()) and word != "I"


def _find_line_starts(text: str, start: int, end: int) -> Iterator[int]:
    at = text.find("\n", start, end)
    while at >= 0:
        yield at + 1
        at = text.find("\n", at + 1, end)


def _cut_list(text: str, start: int, end: int) -> list[int]:
    """Cuts before every item, and between the sentences of long ones."""
    items = [match.start() for match in _ITEM.finditer(text, start, end) if match.start() > start]
    bounds = [start, *items, end]
    cuts = [start]
    for item_start, item_end in pairwise(bounds):
        if item_end - item_start > _LONG_ITEM_CHARS:
            cuts.extend(_find_stops(text, item_start, item_end))
        cuts.append(item_end)
    return cuts


def _cut_rows(text: str, start: int, end: int) -> list[int]:
    """Cuts between lines that hold words; rulers stay with the row above (below, at the top)."""
    cuts = [start]
    named = False
    line_start = start
    for line_end in (*_find_line_starts(text, start, end), end):
        if _WORD.search(text, line_start, line_end):
            if named:
                cuts.append(line_start)
            named = True
        line_start = line_end
    cuts.append(end)
    return cuts


def _cut_code(text: str, start: int, end: int) -> list[int]:
    """One sentence, or groups of lines where the block is long: cut at a blank line if one comes late enough."""
    cuts = [start]
    if end - start > _LONG_CODE_CHARS:
        blank = start
        previous = start
        for line_start in _find_line_starts(text, start, end):
            if text[previous:line_start].isspace():
                blank = line_start
            if line_start - cuts[-1] >= _CODE_GROUP_CHARS and blank - cuts[-1] >= _CODE_GROUP_CHARS // 2:
                cuts.append(blank)
            elif line_start - cuts[-1] >= _LONG_CODE_CHARS:
                cuts.append(line_start)
            previous = line_start
    cuts.append(end)
    return cuts
