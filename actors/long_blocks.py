"""Paragraphs that are too long for one segment, or for the tokenizer in one piece, divided by content."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from lodestream.actors.cuts import Candidates, choose_cuts, hash_neighbours, hash_runs, hash_windows
from lodestream.actors.paragraphs import Paragraph
from lodestream.actors.sentences import split_lines, split_sentences
from lodestream.actors.tokenize import Tokens
from lodestream.errors import DocumentError

PORTION_CHARS: Final = 1 << 16
"""Longest text that is tokenised in one piece."""

_WINDOW: Final = 4
_STRIDE_CHARS: Final = 1 << 20
_WORD_SHARE: Final = np.uint64((1 << 64) // 16)
_CHAR_SHARE: Final = np.uint64((1 << 64) // 256)
_NEWLINE: Final = re.compile("\n")


def portion_paragraph(text: str, paragraph: Paragraph) -> list[Paragraph]:
    """Divides a paragraph of more than PORTION_CHARS characters: between lines, else words, else characters."""
    start, end = paragraph.char_start, paragraph.char_end
    if end - start <= PORTION_CHARS:
        return [paragraph]
    tiers = [_line_candidates(text, start, end)]
    if any(b - a > PORTION_CHARS for a, b in _gaps(start, end, tiers[0].positions)):
        tiers += [*_char_candidates(text, start, end), _even_candidates(start, end)]
    return _make_parts(text, paragraph, choose_cuts(start, end, PORTION_CHARS, tiers))


def cut_long_paragraph(text: str, paragraph: Paragraph, tokens: Tokens, limit: int) -> Iterator[tuple[Paragraph, int]]:
    """Divides a paragraph of more than ``limit`` tokens.

    Between sentences, items, rows or lines where that suffices; else between words; else between characters.

    Args:
        text: the document.
        paragraph: what is to be divided.
        tokens: its tokens, offsets in the document.
        limit: most tokens of a part.

    Yields:
        Parts, each with the number of the paragraph's tokens up to its end.

    Raises:
        DocumentError: see outline_documents.
    """
    num_tokens = len(tokens.ids)
    reach = np.maximum.accumulate(tokens.char_ends)
    windows = hash_windows(tokens.ids, _WINDOW)
    apart = np.flatnonzero(reach[:-1] < tokens.char_starts[1:]) + 1
    touching = np.flatnonzero(reach[:-1] <= tokens.char_starts[1:]) + 1
    tiers = [
        _unit_candidates(text, paragraph, tokens, touching),
        Candidates(positions=apart, hashes=windows[apart - 1]),
        Candidates(positions=touching, hashes=windows[touching - 1]),
    ]
    cuts = choose_cuts(0, num_tokens, limit, tiers)
    ends = [*cuts, num_tokens]
    if max(b - a for a, b in zip([0, *cuts], ends, strict=True)) > limit:
        raise DocumentError(
            f"characters {paragraph.char_start} to {paragraph.char_end}: over {limit} tokens that nothing divides",
            "raise the encoder's segment length, or leave the document out",
        )
    return zip(_make_parts(text, paragraph, tokens.char_starts[cuts].tolist()), ends, strict=True)


def _unit_candidates(text: str, paragraph: Paragraph, tokens: Tokens, allowed: npt.NDArray[np.int64]) -> Candidates:
    """Borders between the paragraph's lines (code, tables, markup) or sentences and items (all else)."""
    start, end, kind = paragraph.char_start, paragraph.char_end, paragraph.kind
    by_line = kind in ("code", "table", "markup")
    units = split_lines(text, start, end) if by_line else split_sentences(text, start, end, kind)
    firsts = np.searchsorted(tokens.char_starts, [unit_start for unit_start, _ in units[1:]])
    positions = np.intersect1d(firsts, allowed).astype(np.int64)
    hashes = hash_neighbours(hash_runs(tokens.ids, np.concatenate([[0], positions])))
    return Candidates(positions=positions, hashes=hashes)


def _make_parts(text: str, paragraph: Paragraph, cuts: list[int]) -> list[Paragraph]:
    """The parts between cuts (characters), without white space at their ends."""
    bounds = [paragraph.char_start, *cuts, paragraph.char_end]
    parts: list[Paragraph] = []
    for start, end in pairwise(bounds):
        content = text[start:end]
        # Tokenizers with tokens for white space may have parts of nothing else: those stay as they are.
        bare = content.strip() or content
        bare_start = start + content.find(bare[0])
        parts.append(replace(paragraph, char_start=bare_start, char_end=bare_start + len(bare)))
    return parts


def _gaps(start: int, end: int, positions: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    bounds = [start, *positions.tolist(), end]
    return pairwise(bounds)


def _line_candidates(text: str, start: int, end: int) -> Candidates:
    positions = np.fromiter((m.end() for m in _NEWLINE.finditer(text, start, end)), np.int64)
    hashes = np.fromiter(
        (zlib.crc32(text[a:b].encode("utf-8", "surrogatepass")) for a, b in _gaps(start, end, positions)), np.uint64
    )
    return Candidates(positions=positions, hashes=hash_neighbours(hashes))


def _char_candidates(text: str, start: int, end: int) -> tuple[Candidates, Candidates]:
    """Starts of words, and borders between characters: of both those few whose surroundings have a small hash."""
    words: list[npt.NDArray[np.int64]] = []
    chars: list[npt.NDArray[np.int64]] = []
    word_hashes, char_hashes = [], []
    for low in range(start, end, _STRIDE_CHARS):
        first, last = max(low - _WINDOW, start), min(low + _STRIDE_CHARS + _WINDOW, end)
        points = np.frombuffer(text[first:last].encode("utf-32-le", "surrogatepass"), np.uint32)
        hashes = hash_windows(points, _WINDOW)
        positions = np.arange(first + 1, last, dtype=np.int64)
        inside = (positions > low) & (positions <= low + _STRIDE_CHARS)
        opens_word = inside & (points[:-1] <= 32) & (points[1:] > 32) & (hashes < _WORD_SHARE)
        few = inside & (hashes < _CHAR_SHARE)
        words.append(positions[opens_word])
        word_hashes.append(hashes[opens_word])
        chars.append(positions[few])
        char_hashes.append(hashes[few])
    return (
        Candidates(positions=np.concatenate(words), hashes=np.concatenate(word_hashes)),
        Candidates(positions=np.concatenate(chars), hashes=np.concatenate(char_hashes)),
    )


def _even_candidates(start: int, end: int) -> Candidates:
    """Every so many characters: for text so even that no place in it differs from the next."""
    positions = np.arange(start + PORTION_CHARS // 2, end, PORTION_CHARS // 2, dtype=np.int64)
    return Candidates(positions=positions, hashes=np.zeros(len(positions), np.uint64))
