"""Blocks of Markdown, reStructuredText and plain text."""

from __future__ import annotations

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.actors.lines import read_lines
from lodestream.actors.paragraphs import TextFormat, split_paragraphs, text_format_of


def kinds(text: str, text_format: TextFormat = "markdown") -> list[tuple[str, str]]:
    """Kind and first line of each paragraph."""
    text = dedent(text)
    return [(p.kind, text[p.char_start : p.char_end].split("\n")[0]) for p in split_paragraphs(text, text_format)]


def test_formats_by_extension() -> None:
    assert text_format_of("a/B.MD") == "markdown"
    assert text_format_of("x.markdown") == "markdown"
    assert text_format_of("peps/pep-0008.rst") == "rst"
    assert [text_format_of(p) for p in ("a.txt", "README", "x.md/y", ".md", "")] == ["text"] * 5


def test_lines_keep_their_offsets_whatever_ends_them() -> None:
    text = "a\r\n b\rc\n\td\n"
    lines = read_lines(text)
    assert lines.bare == ["a", "b", "c", "d", ""]
    assert lines.starts == [0, 3, 6, 8, 11]
    assert lines.indents == [0, 1, 0, 4, 0]


def test_markdown_blocks() -> None:
    assert kinds(
        """\
        ---
        title: x
        ---
        # Title #
        Prose on
        two lines
        - item directly below
          continued

          second paragraph of the item
        1. other item
        lazy line

        Prose | with a pipe

        | a | b |
        |---|---|
        | 1 | 2 |
        after the table

        > quote
        lazy
        ```python
        # no heading

        - no list
        ```
            indented continues as code

        ***
        <div>
        <b>x</b>
        </div>

        <!-- a

        b --> tail
        Setext
        ------
        [link]: http://a.example
        [two]: b
        [^1]: a note
        """
    ) == [
        ("markup", "---"),
        ("heading", "Title"),
        ("text", "Prose on"),
        ("list", "- item directly below"),
        ("text", "Prose | with a pipe"),
        ("table", "| a | b |"),
        ("text", "after the table"),
        ("quote", "> quote"),
        ("code", "```python"),
        ("code", "indented continues as code"),
        ("markup", "***"),
        ("markup", "<div>"),
        ("markup", "<!-- a"),
        ("heading", "Setext"),
        ("markup", "[link]: http://a.example"),
        ("text", "[^1]: a note"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#hash tag", "text"),
        ("####### seven", "text"),
        ("#", "markup"),
        ("# #", "markup"),
        ("-no item", "text"),
        ("**bold** start", "text"),
        ("2020 was a year", "text"),
        ("<https://a.example> is a link", "text"),
        ("a < b", "text"),
        ("``` not ` a fence", "text"),
        ("~~~ a ` fence", "code"),
        ("- - -", "markup"),
        ("a | b\n- | -\n1 | 2", "table"),
        ("<details>\n<summary>x</summary>", "markup"),
        ("<pre>\n\na\n</pre>", "code"),
        ("+++\ntitle = 'x'\n+++", "markup"),
        ("---\nnever closed", "markup"),
    ],
)
def test_markdown_single_blocks(text: str, expected: str) -> None:
    assert split_paragraphs(text, "markdown")[0].kind == expected


def test_fences_inside_lists_stay_there() -> None:
    assert kinds("- a\n  ```\n  x\n\n- y\n  ```\n- b\n\ntext\n") == [("list", "- a"), ("text", "text")]


def test_an_unclosed_fence_reaches_to_the_end() -> None:
    assert kinds("a\n\n```\nx\n\n# y\n") == [("text", "a"), ("code", "```")]


def test_restructuredtext_blocks() -> None:
    assert kinds(
        """\
        PEP: 1
        Title: Purpose
        Author: A,
                B

        ========
        Abstract
        ========

        Prose that ends with::

            code here

            more code

        Next
        ----
        Prose right below.

        * item

          of two paragraphs
        * other

        #. numbered
        #. again

        :field: value
        :other: value

        Prose.

            quoted prose

        +---+---+
        | a | b |
        +---+---+

        ==  ==
        a   b
        ==  ==
        1   2

        3   4
        ==  ==

        .. note::

           Inside the note.

           Still inside.

        .. warning:: At once.

        .. code-block:: python
           :linenos:

           x = 1

           y = 2

        .. _target: http://a.example
        .. [1] A footnote
           of two lines
        .. a comment

        >>> 1 + 1
        2

        ----

        Last
        """,
        "rst",
    ) == [
        ("markup", "PEP: 1"),
        ("heading", "Abstract"),
        ("text", "Prose that ends with::"),
        ("code", "code here"),
        ("heading", "Next"),
        ("text", "Prose right below."),
        ("list", "* item"),
        ("list", "#. numbered"),
        ("list", ":field: value"),
        ("text", "Prose."),
        ("quote", "quoted prose"),
        ("table", "+---+---+"),
        ("table", "==  =="),
        ("text", ".. note::"),
        ("text", "Still inside."),
        ("text", ".. warning:: At once."),
        ("code", ".. code-block:: python"),
        ("markup", ".. _target: http://a.example"),
        ("text", ".. [1] A footnote"),
        ("markup", ".. a comment"),
        ("code", ">>> 1 + 1"),
        ("markup", "----"),
        ("text", "Last"),
    ]


def test_plain_text_blocks() -> None:
    assert kinds(
        """\
        The title
        *********

        Prose of one
        block.

           for item in items:
               print(item[0], {"a": 1})

           Somebody once said that the ore lies deep.

        * item

          continued
        * item

        Prose - with a dash
        - that is no list

        A list follows:
        - one
        - two
        """,
        "text",
    ) == [
        ("heading", "The title"),
        ("text", "Prose of one"),
        ("code", "for item in items:"),
        ("quote", "Somebody once said that the ore lies deep."),
        ("list", "* item"),
        ("text", "Prose - with a dash"),
        ("text", "A list follows:"),
        ("list", "- one"),
    ]


@pytest.mark.parametrize(
    ("text_format", "text"),
    [
        ("markdown", "intro\n\n# A\n\na\n\n### B\n\nb\n\n## C\n\nc\n\n# D\n\nd\n"),
        ("rst", "intro\n\n===\nA\n===\n\na\n\nB\n~~~~\n\nb\n\nC\n~~~~\n\nc\n\n===\nD\n===\n\nd\n"),
    ],
)
def test_heading_paths(text_format: TextFormat, text: str) -> None:
    found = [(text[p.char_start : p.char_end], p.heading_path) for p in split_paragraphs(text, text_format)]
    assert found == [
        ("intro", ()),
        ("A", ()),
        ("a", ("A",)),
        ("B", ("A",)),
        ("b", ("A", "B")),
        ("C", ("A",)),
        ("c", ("A", "C")),
        ("D", ()),
        ("d", ("D",)),
    ]


def test_heading_spans_hold_the_title_only() -> None:
    for text, text_format in (
        ("##  A *mine*  ##\n", "markdown"),
        ("  A *mine*\n====\n", "markdown"),
        ("==========\n A *mine*\n==========\n", "rst"),
        ("A *mine*\n--------\n", "rst"),
        ("A *mine*\n********\n", "text"),
    ):
        (paragraph,) = split_paragraphs(text, text_format)  # type: ignore[arg-type]
        assert paragraph.kind == "heading"
        assert text[paragraph.char_start : paragraph.char_end] == "A *mine*" == paragraph.title


FORMATS: tuple[TextFormat, ...] = ("markdown", "rst", "text")
LINES = """

text
# h
- i
  - j
    code
```
> q
|a|b|
|-|-|
===
---
..
.. note::
.. _a: b
a::
== ==
+--+
:f: v
1. x
<div>
<!--
-->
\t
Title: x
[a]: b
*
\f"""


@given(
    lines=st.lists(st.sampled_from(LINES.split("\n")), max_size=40),
    end=st.sampled_from(("\n", "\r\n", "\r")),
    name=st.sampled_from(range(3)),
)
def test_every_line_is_in_one_block(lines: list[str], end: str, name: int) -> None:
    text = end.join(lines)
    text_format: TextFormat = FORMATS[name]
    at = 0
    has_heading = False
    outside = ""
    for paragraph in split_paragraphs(text, text_format):
        assert at <= paragraph.char_start < paragraph.char_end
        span = text[paragraph.char_start : paragraph.char_end]
        assert span == span.strip()
        outside += text[at : paragraph.char_start]
        at = paragraph.char_end
        has_heading |= paragraph.kind == "heading"
    outside = "".join((outside + text[at:]).split())
    assert not outside or (has_heading and not any(char.isalnum() for char in outside))
