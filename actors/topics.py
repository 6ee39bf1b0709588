"""Topics: runs of paragraphs about one thing, cut from the text alone so that every run of the program cuts alike.

Headings open topics. Sections too small to stand alone join what follows under the same parent, or else what came
before. A section that stays long is cut where the vocabulary changes most from one window of paragraphs to the next.

Source: M. Hearst, TextTiling: Segmenting Text into Multi-paragraph Subtopic Passages, Computational Linguistics 23,
1997 (depth score between windows); here the words are token ids in hashed buckets, weighted by rarity in the section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lodestream.actors.cuts import mix_bits

Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

MIN_TOPIC_TOKENS: Final = 96
"""A topic below this joins a neighbour under the same parent heading."""
WHOLE_TOPIC_TOKENS: Final = 384
"""A section with all its subsections stays one topic up to this size."""
LONG_TOPIC_TOKENS: Final = 512
"""Above this a topic is cut where its vocabulary clearly changes."""
MAX_TOPIC_TOKENS: Final = 1024
"""Above this it is cut at its best place, clear or not, as long as both sides reach MIN_TOPIC_TOKENS."""

_WINDOW_TOKENS: Final = 120
_PEAK_REACH: Final = 6
_NUM_BUCKETS: Final = 256
_MAX_RUN_PARAGRAPHS: Final = 2048
"""Longer runs are cut into stretches first: bounds the memory of the vocabulary table."""


@dataclass(slots=True, kw_only=True)
class _Topic:
    """Sections (first of them to end, as paragraph numbers) on their way to becoming a topic."""

    first: int
    end: int
    num_tokens: int
    depth: int


def cut_topics(
    kinds: Sequence[str], depths: Sequence[int], token_ids: Int32Array, paragraph_tokens: Int32Array
) -> Int32Array:
    """The topic of each paragraph.

    Args:
        kinds: [P] schema.PARAGRAPH_KINDS of each paragraph.
        depths: [P] number of headings above each paragraph; looked at for headings only.
        token_ids: int32 [T] tokens of the document.
        paragraph_tokens: int32 [P, 2] half-open spans of tokens.

    Returns:
        int32 [P], from 0, growing by 0 or 1. A heading never is the last paragraph of a topic, unless nothing but
        headings follows it.

    Cost:
        Linear in tokens; about 0.5 us a token where sections are long.
    """
    num_paragraphs = len(kinds)
    if not num_paragraphs:
        return np.zeros(0, np.int32)
    is_heading = np.fromiter((kind == "heading" for kind in kinds), np.bool_, num_paragraphs)
    counts = (paragraph_tokens[:, 1] - paragraph_tokens[:, 0]).astype(np.int64)
    starts: list[int] = []
    for topic in _merge_small(_read_sections(is_heading, depths, counts)):
        starts.append(topic.first)
        if topic.num_tokens > LONG_TOPIC_TOKENS:
            starts += _cut_long(topic, is_heading, counts, token_ids, paragraph_tokens)
    # Headings at the end of a topic go over to the next one.
    place = np.arange(num_paragraphs)
    before_headings = np.maximum.accumulate(np.where(is_heading, 0, place + 1))
    opens = np.zeros(num_paragraphs, np.int32)
    opens[np.append(0, before_headings[:-1])[starts]] = 1
    opens[0] = 0
    return np.cumsum(opens, dtype=np.int32)


def _read_sections(is_heading: npt.NDArray[np.bool_], depths: Sequence[int], counts: Int64Array) -> list[_Topic]:
    """Sections in order: whole with their subsections where small, else each up to its first subheading."""
    firsts = np.flatnonzero(is_heading).tolist()
    if not firsts or firsts[0] != 0:
        firsts.insert(0, 0)
    ends = [*firsts[1:], len(counts)]
    levels = [depths[first] if is_heading[first] else 0 for first in firsts]
    total = np.concatenate([[0], np.cumsum(counts)]).tolist()
    tree_ends = _find_tree_ends(levels)
    sections: list[_Topic] = []
    at = 0
    while at < len(firsts):
        after = tree_ends[at] if is_heading[firsts[at]] else at + 1
        if total[ends[after - 1]] - total[firsts[at]] > WHOLE_TOPIC_TOKENS:
            after = at + 1
        first, end = firsts[at], ends[after - 1]
        sections.append(_Topic(first=first, end=end, num_tokens=total[end] - total[first], depth=levels[at]))
        at = after
    return sections


def _find_tree_ends(levels: Sequence[int]) -> list[int]:
    """For each section the number of the first later one that is not below it."""
    ends = [len(levels)] * len(levels)
    stack: list[int] = []
    for at, level in enumerate(levels):
        while stack and levels[stack[-1]] >= level:
            ends[stack.pop()] = at
        stack.append(at)
    return ends


def _merge_small(sections: list[_Topic]) -> list[_Topic]:
    """Joins sections below the minimum to a neighbour under the same parent."""
    topics: list[_Topic] = []
    for section in sections:
        if topics and topics[-1].num_tokens < MIN_TOPIC_TOKENS:
            if section.depth >= topics[-1].depth:
                _join(topics[-1], section)
                continue
            _join_back(topics)
        topics.append(section)
    _join_back(topics)
    return topics


def _join(topic: _Topic, following: _Topic) -> None:
    topic.end = following.end
    topic.num_tokens += following.num_tokens


def _join_back(topics: list[_Topic]) -> None:
    """Joins the last topic to the one before it, if it is small and what comes out is not too long."""
    if len(topics) < 2 or topics[-1].num_tokens >= MIN_TOPIC_TOKENS:
        return
    if topics[-2].num_tokens + topics[-1].num_tokens <= MAX_TOPIC_TOKENS:
        _join(topics[-2], topics.pop())


def _cut_long(
    topic: _Topic,
    is_heading: npt.NDArray[np.bool_],
    counts: Int64Array,
    token_ids: Int32Array,
    paragraph_tokens: Int32Array,
) -> list[int]:
    """Paragraphs inside a long topic at which new topics start."""
    starts: list[int] = []
    for first in range(topic.first, topic.end, _MAX_RUN_PARAGRAPHS):
        end = min(first + _MAX_RUN_PARAGRAPHS, topic.end)
        if first > topic.first and not is_heading[first - 1]:
            starts.append(first)
        run = slice(first, end)
        tokens = token_ids[paragraph_tokens[first, 0] : paragraph_tokens[end - 1, 1]]
        depth_scores = _score_gaps(tokens, counts[run])
        depth_scores[1:][is_heading[first : end - 1]] = -np.inf
        starts += [first + gap for gap in _choose_gaps(depth_scores, counts[run])]
    return starts


def _score_gaps(token_ids: Int32Array, counts: Int64Array) -> Float64Array:
    """How far the similarity of the windows beside each gap falls below the peaks near it.

    Returns:
        float64 [P]; entry g belongs to the gap before paragraph g, entry 0 to none.
    """
    similarity = _compare_windows(token_ids, counts)
    padded = np.pad(similarity, _PEAK_REACH, mode="edge")
    peaks = np.lib.stride_tricks.sliding_window_view(padded, _PEAK_REACH + 1).max(axis=1)
    depths = peaks[: len(similarity)] + peaks[_PEAK_REACH : _PEAK_REACH + len(similarity)] - 2 * similarity
    return np.concatenate([[-np.inf], depths])


def _compare_windows(token_ids: Int32Array, counts: Int64Array) -> Float64Array:
    """Cosine of the vocabularies before and after each of the P - 1 inner gaps, float64."""
    num_paragraphs = len(counts)
    if num_paragraphs < 2:
        return np.zeros(0)
    owner = np.repeat(np.arange(num_paragraphs), counts)
    bucket = (mix_bits(token_ids.astype(np.uint64)) % np.uint64(_NUM_BUCKETS)).astype(np.int64)
    table = np.bincount(owner * _NUM_BUCKETS + bucket, minlength=num_paragraphs * _NUM_BUCKETS)
    table = table.reshape(num_paragraphs, _NUM_BUCKETS)
    rarity = np.log((num_paragraphs + 1) / ((table > 0).sum(axis=0) + 0.5))
    before = np.concatenate([np.zeros((1, _NUM_BUCKETS)), np.cumsum(table, axis=0)])
    position = np.concatenate([[0], np.cumsum(counts)])
    gaps = np.arange(1, num_paragraphs)
    left = np.searchsorted(position, position[gaps] - _WINDOW_TOKENS, side="right") - 1
    right = np.searchsorted(position, position[gaps] + _WINDOW_TOKENS)
    first = np.log1p(before[gaps] - before[np.maximum(left, 0)]) * rarity
    second = np.log1p(before[np.minimum(right, num_paragraphs)] - before[gaps]) * rarity
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(norms, 1e-12), np.float64)


def _choose_gaps(depth_scores: Float64Array, counts: Int64Array) -> list[int]:
    """Gaps at which a run is cut, in any order."""
    finite = depth_scores[np.isfinite(depth_scores)]
    if not len(finite):
        return []
    clear = finite.mean() + 0.5 * finite.std()
    position = np.concatenate([[0], np.cumsum(counts)])
    chosen: list[int] = []
    parts = [(0, len(counts))]
    while parts:
        low, high = parts.pop()
        num_tokens = position[high] - position[low]
        if num_tokens <= LONG_TOPIC_TOKENS:
            continue
        first = max(int(np.searchsorted(position, position[low] + MIN_TOPIC_TOKENS)), low + 1)
        last = min(int(np.searchsorted(position, position[high] - MIN_TOPIC_TOKENS, side="right")), high)
        if first >= last:
            continue
        gap = first + int(depth_scores[first:last].argmax())
        if depth_scores[gap] == -np.inf or (num_tokens <= MAX_TOPIC_TOKENS and depth_scores[gap] < clear):
            continue
        chosen.append(gap)
        parts += [(low, gap), (gap, high)]
    return chosen
