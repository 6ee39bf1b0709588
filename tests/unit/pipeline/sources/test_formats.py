"""Bytes to text: what is beyond doubt is read exactly, what is not fails with what to do."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.errors import DocumentError
from lodestream.pipeline.sources.formats import (
    extract_bytes,
    extract_text,
    format_of,
    hash_body,
    reading_version,
)

RUSSIAN = (
    "Правительство объявило в четверг о ряде мер по защите старых лесов. «У нас больше нет выбора», — заявила министр, "
    "напомнив о прошлом лете, когда сгорели тысячи гектаров. Откуда возьмутся деньги? Пока неизвестно."
)
JAPANESE = (
    "政府は木曜日、古い森林を守るための一連の措置を発表した。「もはや選択の余地はない」と大臣は述べ、数千ヘクタールが焼けた"
    "昨年の夏に触れた。環境団体はこの決定を歓迎したが、具体的な日程がないことを残念に思っている。"
)
GREEK = (
    "Η κυβέρνηση ανακοίνωσε την Πέμπτη μια σειρά μέτρων για την προστασία των παλαιών δασών. «Δεν έχουμε πια επιλογή», "
    "δήλωσε η υπουργός, υπενθυμίζοντας το περασμένο καλοκαίρι, όταν κάηκαν χιλιάδες εκτάρια."
)
FRENCH = "Où trouver l’argent ? Ça reste à voir, a déclaré la ministre, évoquant l’été où des forêts ont brûlé. " * 5


def read(body: bytes, document_format: str = "text", encoding: str = "auto") -> str:
    return extract_bytes(body, document_format, encoding=encoding, setting="sources.docs.encoding").text  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_unicode_with_its_mark_is_read_exactly(encoding: str, text: str) -> None:
    text = text.removeprefix("\ufeff")
    assert read(text.encode(encoding)) == text


def test_line_ends_and_tabs_stay_as_they_are() -> None:
    assert read(b"a\r\nb\tc\x0c\n") == "a\r\nb\tc\x0c\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(RUSSIAN, "koi8-r"), (RUSSIAN, "cp1251"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp"), (RUSSIAN, "cp866")],
)
def test_what_has_one_plausible_reading_is_read(text: str, encoding: str) -> None:
    body = text.encode(encoding, "ignore")
    assert read(body) == body.decode(encoding)


@pytest.mark.parametrize("body", [FRENCH.encode("cp1252"), b"caf\xe9", RUSSIAN[:30].encode("koi8-r")])
def test_what_has_several_plausible_readings_fails_and_says_what_to_set(body: bytes) -> None:
    with pytest.raises(DocumentError, match="not UTF-8: byte 0x.. at offset") as caught:
        read(body)
    assert "sources.docs.encoding" in caught.value.hint


def test_no_prefix_of_a_page_in_a_legacy_encoding_is_read_wrongly() -> None:
    """Whatever is accepted is right: every prefix, in several encodings whose bytes mean other letters elsewhere."""
    accepted = 0
    for text, encoding in ((FRENCH, "cp1252"), (FRENCH, "cp850"), (RUSSIAN, "koi8-r"), (GREEK, "iso8859-7")):
        for end in range(10, len(text), 23):
            body = text[:end].encode(encoding, "ignore")
            try:
                found = read(body)
            except DocumentError:
                continue
            accepted += 1
            assert found == body.decode(encoding), (encoding, end)
    assert accepted > 4


def test_a_given_encoding_decides() -> None:
    assert read(b"caf\xe9", encoding="windows-1252") == "café"
    with pytest.raises(DocumentError, match="not ascii: byte 0xe9 at offset 3") as caught:
        read(b"caf\xe9", encoding="ascii")
    assert "sources.docs.encoding" in caught.value.hint


def test_bytes_that_are_no_text_fail() -> None:
    with pytest.raises(DocumentError, match="binary: a NUL byte at offset 2"):
        read(b"PK\0\3")
    with pytest.raises(DocumentError, match="binary: 200 of 1400 characters are control characters"):
        read(b"\x01abcdef" * 200)
    noise = bytes(byte for byte in os.urandom(4000) if byte)
    with pytest.raises(DocumentError):
        read(noise)


def test_a_terminal_log_with_a_few_controls_is_text() -> None:
    assert read(b"\x1b[1mbold\x1b[0m " * 50 + b"\x07") != ""


def test_a_truncated_utf16_document_fails() -> None:
    with pytest.raises(DocumentError, match="not utf-16"):
        read("text".encode("utf-16")[:-1])


PAGE = """<!doctype html><html><head><title>A &amp; B
 page</title><style>p{}</style><script>let x = "<p>no</p>"</script></head>
<body><nav><a href="/">Home</a></nav>
<header><h1>Head <em>one</em><a class="headerlink" href="#h">&para;</a></h1></header>
<p>See <a href="https://example.org/long?address=1">the <b>text</b></a> &lt;here&gt;.</p>
<ul><li>x</li></ul><table><tr><th>a</th></tr><tr><td>1</td></tr></table><pre><code>def f():
    return 1
</code></pre><p hidden>secret</p><template>t</template></body></html>"""


def test_html_becomes_markdown_with_its_structure() -> None:
    found = extract_text(PAGE, "html")
    assert found.text_format == "markdown"
    assert found.text.startswith("---\ntitle: A & B page\n---\n\n# Head *one*\n\nSee the **text** <here>.\n")
    for piece in ("- x", "| a |", "def f():\n    return 1"):
        assert piece in found.text
    for piece in ("example.org", "no</p>", "secret", "Home", "p{}", "¶"):
        assert piece not in found.text


def test_text_that_looks_like_markdown_stays_text() -> None:
    found = extract_text("<p># no heading</p><p>- no list</p>", "html").text
    assert found == "\\# no heading\n\n\\- no list\n"


def test_html_too_deep_to_be_read_in_full_fails_instead_of_losing_its_end() -> None:
    with pytest.raises(DocumentError, match="nested too deeply"):
        extract_text("<div>" * 3000 + "the end", "html")
    assert "the end" in extract_text("<div>" * 300 + "the end", "html").text


def test_a_page_says_its_own_encoding() -> None:
    body = b'<html><head><meta charset="iso-8859-1"></head><body><p>caf\xe9 \x93quoted\x94</p></body></html>'
    assert read(body, "html").strip() == "café “quoted”"
    assert read("<meta charset=utf-8><p>caf\u00e9".encode(), "html").strip() == "café"
    with pytest.raises(DocumentError, match="not euc_jp") as caught:
        read(b"<meta charset=euc-jp><p>caf\xe9", "html")
    assert "charset" in caught.value.hint


def test_the_format_is_named_by_the_extension() -> None:
    names = {"a/B.HTML": "html", "a.htm": "html", "a.md": "markdown", "a.rst": "rst", "a.txt": "text", "a": "text"}
    assert {name: format_of(name) for name in names} == names


def test_the_hash_depends_on_how_the_bytes_are_read() -> None:
    body = b"<p>x"
    versions = [reading_version("text"), reading_version("html"), reading_version("text", "cp1252")]
    assert versions[0] == ""
    assert versions[1].startswith("html-to-markdown ")
    assert len({hash_body(body, version) for version in versions}) == 3
