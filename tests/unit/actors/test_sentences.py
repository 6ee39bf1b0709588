"""Where sentences end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.actors.sentences import split_lines, split_sentences
from lodestream.schema import PARAGRAPH_KINDS, ParagraphKind


def cut(text: str, kind: ParagraphKind = "text") -> list[str]:
    return [text[start:end] for start, end in split_sentences(text, 0, len(text), kind)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Ore is mined.", "Gravel is not!", "Is it?", "Yes."],
        ["Dr. Smith of Acme Inc. said it works, e.g. in Fig. 3, i.e. below.", "See Prof. Doe et al. for more."],
        ["It costs 3.14 or 1,000.50 a kg.", "Version 1.2.3 is out.", "Use v2.0."],
        ["See https://a.example/b.c?d=e.f for it.", "Mail a.b@c.example.", "Open file.txt now."],
        ["J. R. R. Tolkien wrote.", "The U.S. government read."],
        ["At 5 p.m. he left.", "At 6 p.m.", "She came."],
        ["Bring ore, lamps, etc. to the shaft.", "Bring ore, lamps, etc.", "Then leave."],
        ["And then...", "Nothing.", "Wait... what?"],
        ['"Really?" he asked.', '"Yes."', "(Indeed.)", "[So.]", "End."],
        ["**Bold.**", "_Slanted._", "`Code.`", "Plain."],
        ["1. First thing.", "Then another."],
        ["No. 5 is open.", "No.", "It is shut."],
        ["Built in 1999.", "Then shut."],
        ["What?!", "Who!!", "Never\u203c", "Now."],
        ["これは文です。", "次の文！", "本当？", "「はい。」と言った。", "終わり"],
        ["这是一句。", "第二句！", "他说：「好。」", "完。"],
        ["नमस्ते।", "फिर मिलेंगे।"],
        ["هل هذا؟", "نعم."],
        ["iPhone sales.", "They grew."],
    ],
)
def test_prose(sentences: list[str]) -> None:
    glue = "" if sentences[0][0] in "これ这" else " "
    assert cut(glue.join(sentences)) == sentences


def test_line_ends_do_not_end_sentences() -> None:
    assert cut("One sentence\non two lines. Another\r\none.") == ["One sentence\non two lines.", "Another\r\none."]


def test_a_small_letter_after_a_stop_goes_on() -> None:
    assert cut("It is approx. five. and a half. Good.") == ["It is approx. five. and a half.", "Good."]


def test_lists_are_cut_at_items_and_long_items_at_sentences() -> None:
    assert cut("- one. Two\n  three\n  - four\n\n10. five\n(a) six", "list") == [
        "- one. Two\n  three",
        "- four",
        "10. five",
        "(a) six",
    ]
    long = "- " + "The ore is carried to the mill. " * 10
    assert len(cut(long + "\n- short. Item", "list")) == 11


def test_tables_are_cut_at_rows_and_rulers_stay_with_the_row_above() -> None:
    assert cut("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |", "table") == [
        "| a | b |\n|---|---|",
        "| 1 | 2 |",
        "| 3 | 4 |",
    ]
    assert cut("+---+\n| a |\n+===+\n| b |\n+---+", "table") == ["+---+\n| a |\n+===+", "| b |\n+---+"]
    assert cut("|--|\n|--|", "table") == ["|--|\n|--|"]


def test_code_is_one_sentence_unless_it_is_long() -> None:
    assert cut("x = 1. \n\nY = 2! Z", "code") == ["x = 1. \n\nY = 2! Z"]
    lines = [f"value_{i} = compute({i})" + ("\n" if i % 10 == 9 else "") for i in range(200)]
    groups = cut("\n".join(lines), "code")
    assert len(groups) > 4
    assert all(len(group) <= 1300 for group in groups)
    assert all(group.startswith("value_") and int(group[6:].split()[0]) % 10 == 0 for group in groups)


def test_headings_are_one_sentence() -> None:
    assert cut("Why? Because. Yes.", "heading") == ["Why? Because. Yes."]


def test_only_the_given_part_is_looked_at() -> None:
    text = "Before. One. Two. After"
    assert split_sentences(text, 8, 17, "text") == [(8, 12), (13, 17)]


def test_lines() -> None:
    text = "a\n\n  b \r\nc"
    assert [text[start:end] for start, end in split_lines(text, 0, len(text))] == ["a", "b", "c"]


@given(
    text=st.text(st.sampled_from("aB1 .!?…\n\t\"')|-*。！」と\u2028\x1f\x00\U0001f600"), min_size=1, max_size=120),
    kind=st.sampled_from(PARAGRAPH_KINDS),
)
def test_nothing_but_white_space_is_left_out(text: str, kind: ParagraphKind) -> None:
    spans = split_sentences(text, 0, len(text), kind)
    assert "".join("".join(text[start:end] for start, end in spans).split()) == "".join(text.split())
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
