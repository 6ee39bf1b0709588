"""Documents cut into the spans that get vectors, and into the segments that the encoder sees at once.

A segment is a run of whole paragraphs. Where one ends and the next begins depends on what stands there, never on how
far it is from the top, so that an edit leaves all other segments as they were and their vectors can be used again.
``docs/spans.md`` gives the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from lodestream.actors.cuts import Candidates, choose_cuts, discourage, hash_neighbours, hash_runs
from lodestream.actors.long_blocks import cut_long_paragraph, portion_paragraph
from lodestream.actors.paragraphs import Paragraph, TextFormat, split_paragraphs, text_format_of
from lodestream.actors.sentences import split_sentences
from lodestream.actors.tokenize import TokenBatch, Tokenizer, Tokens
from lodestream.actors.topics import cut_topics

__all__ = ["SPANS_VERSION", "Outline", "SegmentOptions", "outline_documents", "text_format_of"]

Int32Array = npt.NDArray[np.int32]

SPANS_VERSION: Final = 1
"""Raised when the same text would be cut differently; part of every fingerprint."""

MIN_MAX_TOKENS: Final = 32
_MAX_TITLE_CHARS: Final = 200
_HEADING_SEPARATOR: Final = " > "


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOptions:
    """How segments are cut.

    ``max_tokens``     most tokens of a segment, special and heading-prefix tokens included; at least MIN_MAX_TOKENS
    ``target_tokens``  a paragraph of n tokens starts a segment with a chance of n / target_tokens, decided by its own
                       content; 1 makes every paragraph, with the headings above it, a segment of its own
    ``over_headings``  whether a segment may reach over headings; else each heading starts one
    ``heading_prefix`` whether the encoder sees the path of headings before each segment, at most max_tokens // 4 tokens
    """

    max_tokens: int
    target_tokens: int = 32
    over_headings: bool = False
    heading_prefix: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < MIN_MAX_TOKENS:
            raise ValueError(f"max_tokens must be at least {MIN_MAX_TOKENS}, not {self.max_tokens}")
        if self.target_tokens < 1:
            raise ValueError(f"target_tokens must be at least 1, not {self.target_tokens}")

    @property
    def max_prefix_tokens(self) -> int:
        """Most tokens of a heading prefix."""
        return self.max_tokens // 4 if self.heading_prefix else 0

    def max_content_tokens(self, num_special_tokens: int) -> int:
        """Most tokens of the paragraphs of one segment."""
        return self.max_tokens - self.max_prefix_tokens - num_special_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """One document as spans: P paragraphs, S sentences, G segments, T tokens. Offsets count in the original text.

    ``title``                 of the front matter, else the first heading, else the first line; at most 200 characters
    ``token_ids``             int32 [T], all tokens in order, without special and prefix tokens
    ``paragraph_kinds``       [P], of schema.PARAGRAPH_KINDS
    ``paragraph_chars``       int32 [P, 2], half-open, as all spans here
    ``paragraph_tokens``      int32 [P, 2], a partition of the tokens
    ``paragraph_topics``      int32 [P], from 0, growing by 0 or 1
    ``sentence_chars``        int32 [S, 2]
    ``sentence_tokens``       int32 [S, 2], a partition of the tokens
    ``sentence_paragraphs``   int32 [S], the paragraph of each sentence
    ``segment_paragraphs``    int32 [G, 2], a partition of the paragraphs
    ``segment_prefix_ids``    [G] int32 arrays, tokens of the heading prefix; empty where there is none
    """

    title: str
    token_ids: Int32Array
    paragraph_kinds: tuple[str, ...]
    paragraph_chars: Int32Array
    paragraph_tokens: Int32Array
    paragraph_topics: Int32Array
    sentence_chars: Int32Array
    sentence_tokens: Int32Array
    sentence_paragraphs: Int32Array
    segment_paragraphs: Int32Array
    segment_prefix_ids: tuple[Int32Array, ...]


def outline_documents(
    texts: Sequence[str], formats: Sequence[TextFormat], tokenizer: Tokenizer, options: SegmentOptions
) -> list[Outline]:
    """Cuts documents into paragraphs, sentences, topics and segments.

    Args:
        texts: the documents.
        formats: the format of each.
        tokenizer: of the model that will encode them.
        options: how segments are cut.

    Returns:
        One ``Outline`` per document. A document without a single token has no spans at all.

    Raises:
        DocumentError: a stretch of text has more tokens than fit a segment and no place between two characters where it
            could be divided. No known tokenizer does this.

    Cost:
        Linear in the text.
    """
    blocks = [
        [part for paragraph in split_paragraphs(text, text_format) for part in portion_paragraph(text, paragraph)]
        for text, text_format in zip(texts, formats, strict=True)
    ]
    contents = [
        text[block.char_start : block.char_end] for text, own in zip(texts, blocks, strict=True) for block in own
    ]
    batch = tokenizer.tokenize_batch(contents)
    limit = options.max_content_tokens(tokenizer.num_special_tokens)
    outlines: list[Outline] = []
    paths: list[tuple[str, ...]] = []
    at = 0
    for text, own in zip(texts, blocks, strict=True):
        paragraphs = _place_tokens(text, own, batch, at, limit)
        at += len(own)
        outline = _outline(text, paragraphs, options, limit)
        outlines.append(outline)
        paths += [paragraphs.blocks[first].heading_path for first in outline.segment_paragraphs[:, 0].tolist()]
    return _add_prefixes(outlines, paths, tokenizer, options.max_prefix_tokens) if options.heading_prefix else outlines


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """Paragraphs of one document with their tokens; ``bounds`` int32 [P + 1], token offsets count in the document."""

    blocks: list[Paragraph]
    tokens: Tokens
    bounds: Int32Array


def _place_tokens(text: str, blocks: list[Paragraph], batch: TokenBatch, at: int, limit: int) -> _Placed:
    """Gives blocks their tokens, drops those without any and divides those with too many."""
    offsets = batch.offsets[at : at + len(blocks) + 1].astype(np.int64)
    counts = np.diff(offsets)
    where = slice(int(offsets[0]), int(offsets[-1]))
    base = np.repeat(np.fromiter((b.char_start for b in blocks), np.int32, len(blocks)), counts)
    tokens = Tokens(
        ids=batch.ids[where],
        char_starts=batch.char_starts[where] + base,
        char_ends=batch.char_ends[where] + base,
    )
    placed: list[Paragraph] = []
    bounds = [0]
    for block, (first, end) in zip(blocks, pairwise((offsets - offsets[0]).tolist()), strict=True):
        if end - first > limit:
            own = Tokens(
                ids=tokens.ids[first:end],
                char_starts=tokens.char_starts[first:end],
                char_ends=tokens.char_ends[first:end],
            )
            for part, part_end in cut_long_paragraph(text, block, own, limit):
                placed.append(part)
                bounds.append(first + part_end)
        elif end > first:
            placed.append(block)
            bounds.append(end)
    return _Placed(blocks=placed, tokens=tokens, bounds=np.array(bounds, np.int32))


def _outline(text: str, placed: _Placed, options: SegmentOptions, limit: int) -> Outline:
    blocks, bounds = placed.blocks, placed.bounds
    spans = np.stack([bounds[:-1], bounds[1:]], axis=1)
    kinds = tuple(block.kind for block in blocks)
    sentence_chars, sentence_tokens, owners = _cut_sentences(text, placed)
    segments = cut_segments(
        kinds,
        placed.tokens.ids,
        bounds,
        target_tokens=options.target_tokens,
        limit=limit,
        over_headings=options.over_headings,
    )
    return Outline(
        title=_find_title(text, blocks),
        token_ids=placed.tokens.ids,
        paragraph_kinds=kinds,
        paragraph_chars=np.array([(b.char_start, b.char_end) for b in blocks], np.int32).reshape(-1, 2),
        paragraph_tokens=spans,
        paragraph_topics=cut_topics(kinds, [len(b.heading_path) for b in blocks], placed.tokens.ids, spans),
        sentence_chars=sentence_chars,
        sentence_tokens=sentence_tokens,
        sentence_paragraphs=owners,
        segment_paragraphs=segments,
        segment_prefix_ids=(np.zeros(0, np.int32),) * len(segments),
    )


def _cut_sentences(text: str, placed: _Placed) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Sentences of all paragraphs: characters [S, 2], tokens [S, 2] and paragraph [S] of each, all int32."""
    found = [split_sentences(text, b.char_start, b.char_end, b.kind) for b in placed.blocks]
    chars = np.array([span for spans in found for span in spans], np.int32).reshape(-1, 2)
    if not len(chars):
        return chars, chars, np.zeros(0, np.int32)
    owners = np.repeat(np.arange(len(found), dtype=np.int32), [len(spans) for spans in found])
    firsts = np.searchsorted(placed.tokens.char_starts, chars[:, 0]).astype(np.int32)
    leads = np.diff(owners, prepend=-1) > 0
    firsts[leads] = placed.bounds[:-1]
    # A sentence without a token of its own, or whose first characters belong to a token that began before it, is part
    # of the one before.
    reach = np.maximum.accumulate(placed.tokens.char_ends)
    keep = (firsts > np.append(-1, firsts[:-1])) & (firsts < placed.bounds[owners + 1])
    keep &= reach[np.maximum(firsts, 1) - 1] <= chars[:, 0]
    keep |= leads
    chars = np.stack([chars[keep, 0], chars[np.append(keep[1:], True), 1]], axis=1)
    firsts, owners = firsts[keep], owners[keep]
    ends = np.append(firsts[1:], np.int32(len(placed.tokens.ids)))
    return chars, np.stack([firsts, ends], axis=1), owners


def cut_segments(
    kinds: Sequence[str],
    token_ids: Int32Array,
    bounds: Int32Array,
    *,
    target_tokens: int,
    limit: int,
    over_headings: bool = False,
) -> Int32Array:
    """Runs of paragraphs that are encoded together.

    A heading starts a segment and takes along what follows it. Any other paragraph starts one if a number in [0, 1)
    made of its own tokens is below its size / ``target_tokens``. Runs above ``limit`` are cut again by content.

    Args:
        kinds: [P] kind of each paragraph.
        token_ids: int32 [T].
        bounds: int32 [P + 1]; paragraph p has tokens bounds[p]:bounds[p + 1], never none.
        target_tokens: see SegmentOptions.
        limit: most tokens of a segment.
        over_headings: a heading is like any other paragraph, but that what follows it starts no segment.

    Returns:
        int32 [G, 2], half-open runs of paragraphs.
    """
    num_paragraphs = len(kinds)
    if not num_paragraphs:
        return np.zeros((0, 2), np.int32)
    hashes = hash_runs(token_ids, bounds[:-1])
    is_heading = np.fromiter((kind == "heading" for kind in kinds), np.bool_, num_paragraphs)
    after_heading = np.append(False, is_heading[:-1])
    chance = np.diff(bounds) / target_tokens
    opens = (hashes >> np.uint64(11)) * 2.0**-53 < chance
    if not over_headings:
        opens |= is_heading
    opens &= ~after_heading
    opens[0] = True
    borders = np.append(np.flatnonzero(opens), num_paragraphs)
    starts = borders[:-1].tolist()
    too_long = np.flatnonzero(np.diff(bounds[borders]) > limit)
    if len(too_long):
        inner = Candidates(
            positions=bounds[1:-1].astype(np.int64),
            hashes=discourage(hash_neighbours(hashes), is_heading[:-1]),
        )
        for run in too_long.tolist():
            cuts = choose_cuts(int(bounds[borders[run]]), int(bounds[borders[run + 1]]), limit, [inner])
            starts += np.searchsorted(bounds, cuts).tolist()
        starts.sort()
    return np.stack([starts, [*starts[1:], num_paragraphs]], axis=1).astype(np.int32)


def _find_title(text: str, blocks: list[Paragraph]) -> str:
    if not blocks:
        return ""
    title = next((b.title for b in blocks if b.title and b.kind != "heading"), "")
    title = title or next((b.title for b in blocks if b.title), "")
    if not title:
        start = blocks[0].char_start
        title = text[start : min(start + 4 * _MAX_TITLE_CHARS, blocks[0].char_end)].splitlines()[0]
    return " ".join(title.split())[:_MAX_TITLE_CHARS].rstrip()


def _add_prefixes(
    outlines: list[Outline], paths: list[tuple[str, ...]], tokenizer: Tokenizer, max_prefix_tokens: int
) -> list[Outline]:
    """Fills in the heading prefixes; of a long path the innermost headings are kept."""
    distinct = list(dict.fromkeys(paths))
    tokens = tokenizer.tokenize([_HEADING_SEPARATOR.join(path) for path in distinct])
    prefixes = {path: own.ids[-max_prefix_tokens:] for path, own in zip(distinct, tokens, strict=True)}
    filled: list[Outline] = []
    at = 0
    for outline in outlines:
        end = at + len(outline.segment_paragraphs)
        filled.append(replace(outline, segment_prefix_ids=tuple(prefixes[path] for path in paths[at:end])))
        at = end
    return filled
