"""Topics: headings, sizes and changes of vocabulary."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.actors.topics import (
    LONG_TOPIC_TOKENS,
    MAX_TOPIC_TOKENS,
    MIN_TOPIC_TOKENS,
    cut_topics,
)


def cut(paragraphs: list[tuple[str, int, int]], token_ids: np.ndarray | None = None) -> list[int]:
    """Topics of paragraphs given as kind, depth and number of tokens."""
    bounds = np.cumsum([0, *(size for _, _, size in paragraphs)]).astype(np.int32)
    if token_ids is None:
        token_ids = np.random.default_rng(0).integers(1000, 30000, bounds[-1]).astype(np.int32)
    spans = np.stack([bounds[:-1], bounds[1:]], axis=1)
    found = cut_topics([k for k, _, _ in paragraphs], [d for _, d, _ in paragraphs], token_ids, spans)
    assert found.dtype == np.int32
    return list(found.tolist())


def test_nothing() -> None:
    assert cut([]) == []
    assert cut([("text", 0, 1)]) == [0]


def test_headings_open_topics() -> None:
    section = [("heading", 0, 5), ("text", 1, 200), ("text", 1, 100)]
    assert cut(section * 3) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_small_sections_join_under_their_parent() -> None:
    small = [("heading", 1, 5), ("text", 2, 20)]
    parent = [("heading", 0, 5), ("text", 1, 30)]
    large = [("heading", 0, 5), ("text", 1, 300)]
    assert cut([*parent, *small * 3, *large]) == [0] * 8 + [1] * 2
    # Under a large parent they join each other, not the next chapter.
    chapter = [("heading", 0, 5), ("text", 1, 400)]
    assert cut([*chapter, *small * 5, *chapter]) == [0, 0, *[1] * 8, *[1] * 2, 2, 2]


def test_a_heading_takes_along_what_follows() -> None:
    assert cut([("heading", 0, 5), ("heading", 1, 5), ("text", 2, 900), ("heading", 1, 5), ("text", 2, 900)]) == [
        0,
        0,
        0,
        1,
        1,
    ]


def test_long_sections_are_cut_where_the_vocabulary_changes() -> None:
    rng = np.random.default_rng(1)
    vocabularies = [rng.integers(1000, 30000, 40) for _ in range(3)]
    ids = np.concatenate([rng.choice(words, 400) for words in vocabularies]).astype(np.int32)
    assert cut([("text", 0, 20)] * 60, ids) == [0] * 20 + [1] * 20 + [2] * 20


def test_long_sections_are_never_cut_after_a_heading() -> None:
    kinds = [("heading", 0, 3), ("heading", 1, 3), ("text", 2, 2000), ("text", 2, 2000)]
    assert cut(kinds) == [0, 0, 0, 1]


def test_topics_of_one_long_section_stay_between_the_sizes() -> None:
    found = np.array(cut([("text", 0, 25)] * 1000))
    sizes = np.bincount(found) * 25
    assert sizes.min() >= MIN_TOPIC_TOKENS
    assert sizes.max() <= MAX_TOPIC_TOKENS
    assert len(sizes) >= 1000 * 25 / MAX_TOPIC_TOKENS
    assert cut([("text", 0, LONG_TOPIC_TOKENS // 4)] * 4) == [0] * 4


@settings(max_examples=200)
@given(
    paragraphs=st.lists(
        st.tuples(st.sampled_from(("heading", "text", "list", "code")), st.integers(0, 4), st.integers(1, 300)),
        max_size=80,
    )
)
def test_topics_are_runs_and_headings_never_end_one(paragraphs: list[tuple[str, int, int]]) -> None:
    found = cut(paragraphs)
    assert found == cut(paragraphs)
    assert set(np.diff(found, prepend=-1).tolist()) <= {0, 1}
    last_text = max((i for i, (kind, _, _) in enumerate(paragraphs) if kind != "heading"), default=-1)
    for i in range(last_text):
        if paragraphs[i][0] == "heading":
            assert found[i] == found[i + 1]


@pytest.mark.parametrize("kind", ["text", "heading"])
def test_many_paragraphs_take_linear_time(kind: str) -> None:
    start = time.process_time()
    cut([(kind, i % 5, 3) for i in range(200_000)])
    assert time.process_time() - start < 10
