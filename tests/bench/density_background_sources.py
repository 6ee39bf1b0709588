"""What the background of density is built from: paragraphs of prose and of filler, group by group.

Every reader yields documents as (name, paragraphs). They read what stands on the machine that the background is built
on; a place that is missing there yields nothing. None of it is used by the evaluation (filler.py): see
build_density_background.py.
"""

from __future__ import annotations

import ast
import base64
import gettext
import gzip
import html
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from filler import cut_blank_lines, is_held_out_changelog, is_held_out_licence

_PYENV: Final = Path.home() / ".pyenv"
_RUST_TOOLCHAINS: Final = Path.home() / ".rustup/toolchains"

# ---- prose ----------------------------------------------------------------------------------------------------------


def read_docs() -> Iterator[tuple[str, list[str]]]:
    """Documentation of installed tools, the READMEs of other Python installations' distributions among it."""
    roots = (
        ("/usr/share/cmake-3.25/Help", "*.rst"),
        ("/usr/share/doc/nodejs/api", "*.md"),
        ("/usr/lib/node_modules/npm/docs/content", "*.md"),
        ("/usr/share/doc", "README*"),
    )
    paths = [p for root, pattern in roots for p in sorted(Path(root).rglob(pattern)) if p.is_file()]
    for path in paths:
        if path.suffix != ".gz" and "changelog" not in path.name.lower():
            yield str(path), clean_paragraphs(path.read_text("utf-8", "replace"))
    for path in list_other_readmes():
        yield path.parent.name, clean_paragraphs(path.read_text("utf-8", "replace").partition("\n\n")[2])
    for path in sorted(_RUST_TOOLCHAINS.glob("stable*/share/doc/rust/html/book/ch*.html")):
        main = path.read_text("utf-8").partition("<main>")[2].partition("</main>")[0]
        blocks = re.findall(r"<p>(.*?)</p>", main, re.DOTALL)
        yield path.name, [strip_html(b) for b in blocks]


def list_other_readmes() -> list[Path]:
    """Descriptions of distributions in other Python installations, without those that this environment has as well."""
    own = {re.sub(r"[-_.]+", "_", d.metadata["Name"].lower()) for d in metadata.distributions()}
    found = sorted((_PYENV / "versions").glob("*/lib/python3*/site-packages/*.dist-info/METADATA"))
    return [p for p in found if re.sub(r"[-_.]+", "_", p.parent.name.split("-")[0].lower()) not in own]


_SKIPPED_HEADING: Final = re.compile(
    r"licen[cs]e|changelog|change log|release notes|history|links|badges|contents", re.IGNORECASE
)
_HEADING_LINE: Final = re.compile(r"^(#+ .*|[^\n]{3,60}\n[=\-~]{3,})$")


def clean_paragraphs(text: str) -> list[str]:
    """Paragraphs of a document without its badges, its licence section and its changelog."""
    kept, skipping = [], False
    for block in cut_blank_lines(text):
        if _HEADING_LINE.match(block):
            skipping = _SKIPPED_HEADING.search(block) is not None
        is_badge = "[![" in block or ".. image::" in block or ".. |" in block or "toctree" in block
        copyright_line = re.match(r"(copyright|\(c\)|©|\.\. _|\[[^\]]+\]: )", block, re.IGNORECASE)
        if not skipping and not is_badge and not copyright_line and not is_link_list(block):
            kept.append(block)
    return kept


def is_link_list(block: str) -> bool:
    """Whether every line is nothing but a link, or a name in a list."""
    lines = block.splitlines()
    return len(lines) > 2 and all(
        re.match(r"^\s*([*\-+]\s+)?(\[[^\]]*\]\([^)]*\)|[\w/.\-]+|\S*://\S*)\s*$", x) for x in lines
    )


def strip_html(text: str) -> str:
    """The words of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()


def read_docstrings() -> Iterator[tuple[str, list[str]]]:
    """Docstrings of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if relative.startswith(("site-packages", "test", "pydoc_data", "idlelib", "lib2to3")):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Module)]
        docs = [ast.get_docstring(n) or "" for n in nodes]
        yield relative, [p for d in docs for p in cut_blank_lines(d) if len(p) >= 30]


def read_snippets() -> Iterator[tuple[str, list[str]]]:
    """Code as it stands in documentation: fenced blocks, and functions of the standard library."""
    fence = re.compile(r"^```[a-z]+.*?^```", re.MULTILINE | re.DOTALL)
    for path in sorted(Path("/usr/share/doc/nodejs/api").rglob("*.md")):
        yield str(path), fence.findall(path.read_text("utf-8"))
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.glob("*.py")):
        text = path.read_text("utf-8", "replace")
        yield path.name, [b for b in re.split(r"\n(?=(?:def|class) )", text)[1:6] if len(b) < 2_000]


_LANGUAGES: Final = [
    "ar",
    "cs",
    "da",
    "de",
    "el",
    "es",
    "fa",
    "fi",
    "fr",
    "he",
    "hi",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "pt_BR",
    "ro",
    "ru",
    "sv",
    "th",
    "tr",
    "uk",
    "vi",
    "zh_CN",
    "zh_TW",
]


def read_foreign() -> Iterator[tuple[str, list[str]]]:
    """Sentences of message catalogues, help texts and manual pages in other languages than English."""
    for language in _LANGUAGES:
        for path in sorted(Path("/usr/share/locale", language, "LC_MESSAGES").glob("*.mo")):
            yield f"{language}/{path.name}", read_catalogue(path)
        for path in sorted(Path("/usr/share/man", language).rglob("*.gz")):
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                yield f"{language}/{path.name}", read_manual(file.read(40_000))
        help_file = Path(f"/usr/share/gnupg/help.{language}.txt")
        if help_file.is_file():
            blocks = cut_blank_lines(re.sub(r"(?m)^[#.].*$", "", help_file.read_text("utf-8", "replace")))
            yield help_file.name, [b for b in blocks if len(b) > 25]


def read_catalogue(path: Path) -> list[str]:
    """The longer messages of a catalogue that are sentences."""
    try:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError, ValueError):
        return []
    texts = [v for k, v in catalogue.items() if k and isinstance(v, str)]
    return [t for t in texts if len(t.encode()) > 70 and "%" not in t and t[-1:] in ".。!?؟" and "--" not in t][:60]


def read_manual(text: str) -> list[str]:
    """Running text of a manual page: paragraphs without requests and font changes."""
    text = re.sub(r"\\f[A-Z(\[]|\\[&|]", "", text).replace("\\-", "-")
    blocks = re.split(r"(?m)^[.'].*$", text)
    return [b.strip() for b in blocks if len(b.strip().encode()) > 80 and b.strip()[-1:] in ".。"][:30]


# ---- filler ---------------------------------------------------------------------------------------------------------


def read_licences() -> Iterator[tuple[str, list[str]]]:
    """Licences of families that are not held out: GPL, LGPL, Apache, BSD, MIT and their kin."""
    paths = [
        Path("/usr/share/common-licenses", n) for n in ("GPL-2", "GPL-3", "LGPL-2.1", "LGPL-3", "Apache-2.0", "BSD")
    ]
    paths += sorted(Path("/usr/share/doc").glob("*/copyright"))
    paths += sorted((_PYENV / "versions").glob("*/lib/python3*/site-packages/*/LICENSE*"))
    paths += sorted(Path("/usr/lib/node_modules").rglob("LICENSE*"))
    for path in paths:
        if path.is_file():
            text = path.read_text("utf-8", "replace")
            # One licence of a held-out family rules out the file: not every paragraph of it says what it belongs to.
            if not is_held_out_licence(text):
                yield str(path), cut_blank_lines(re.sub(r"(?m)^ \.$", "", text))


def read_changelogs() -> Iterator[tuple[str, list[str]]]:
    """Beginnings of the changelogs of packages that are not held out."""
    for path in sorted(Path("/usr/share/doc").glob("*/changelog*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read(3_000)
        if not is_held_out_changelog(text):
            yield path.parent.name, cut_blank_lines(text)
    roots = sorted(_PYENV.glob("CHANGELOG*")) + sorted(Path("/usr/lib/node_modules").rglob("CHANGELOG*"))
    roots += sorted((_PYENV / "versions").glob("*/lib/python3*/idlelib/[CNH]*[gtT]*"))
    for path in roots:
        if path.is_file():
            yield str(path), cut_blank_lines(path.read_text("utf-8", "replace")[:20_000])


def read_logs() -> Iterator[tuple[str, list[str]]]:
    """Logs of this machine, and generated ones of five formats."""
    for name in (
        "dpkg.log",
        "alternatives.log",
        "apt/term.log",
        "apt/history.log",
        "postgresql/postgresql-15-main.log",
    ):
        path = Path("/var/log", name)
        if path.is_file():
            lines = path.read_text("utf-8", "replace").splitlines()
            yield from group_lines(name, lines)
    rng = random.Random(3)
    for number in range(800):
        make = rng.choice((_python_log, _clf_log, _syslog, _android_log, _make_log))
        yield f"log {number}", ["\n".join(make(rng) for _ in range(rng.randint(2, 12)))]


def group_lines(name: str, lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Runs of 2 to 12 lines; every run is a document of its own."""
    rng, start = random.Random(name), 0
    while start < len(lines):
        end = start + rng.randint(2, 12)
        yield f"{name} {start}", ["\n".join(lines[start:end])]
        start = end


_CITY: Final = [
    "oslo",
    "lima",
    "cairo",
    "delhi",
    "quito",
    "dakar",
    "tunis",
    "sofia",
    "minsk",
    "hanoi",
    "seoul",
    "perth",
    "turin",
    "basel",
    "porto",
    "malmo",
]


def _python_log(rng: random.Random) -> str:
    text = rng.choice(("connection reset by peer", "worker exiting", "loaded 32 rules", "cache miss"))
    level = rng.choice(("DEBUG", "INFO", "WARNING", "ERROR"))
    day, hour, minute = rng.randint(1, 28), rng.randrange(10), rng.randrange(60)
    return f"2023-11-{day:02} 0{hour}:{minute:02}:07,{rng.randrange(999):03} {level} {rng.choice(_CITY)}.worker: {text}"


def _clf_log(rng: random.Random) -> str:
    host, user, day = rng.randrange(99), rng.choice(_CITY), rng.randint(1, 9)
    request = f"POST /{rng.choice(_CITY)}.gif HTTP/1.0"
    return f'host{host} - {user} [0{day}/Oct/2000:13:55:36 -0700] "{request}" 200 {rng.randrange(9999)}'


def _syslog(rng: random.Random) -> str:
    time = f"2003-10-11T22:14:15.{rng.randrange(999):03}Z"
    host, process = rng.choice(_CITY), rng.randrange(9999)
    return f"<{rng.randrange(191)}>1 {time} {host} app {process} ID{rng.randrange(99)} - event logged"


def _android_log(rng: random.Random) -> str:
    time = f"03-17 16:13:{rng.randrange(60):02}.{rng.randrange(999):03}"
    process, name = f"{rng.randrange(4000)}  {rng.randrange(4000)}", f"{rng.choice(_CITY).title()}Manager"
    return f"{time}  {process} {rng.choice('VDIWE')} {name}: state={rng.randrange(9)} flags=0x{rng.getrandbits(16):x}"


def _make_log(rng: random.Random) -> str:
    return f"[{rng.randrange(100):3}%] Building C object src/CMakeFiles/{rng.choice(_CITY)}.dir/{rng.choice(_CITY)}.c.o"


def read_navigation() -> Iterator[tuple[str, list[str]]]:
    """Menus and tables of contents: of manuals, of books, lists of countries in many languages, badges, link lists."""
    titles = []
    for path in sorted(_RUST_TOOLCHAINS.glob("stable*/share/doc/rust/html/*/toc.html")):
        titles += [strip_html(t) for t in re.findall(r"<a [^>]*>(.*?)</a>", path.read_text("utf-8"), re.DOTALL)]
    for path in sorted(Path("/usr/share/cmake-3.25/Help").rglob("*.rst")):
        text = path.read_text("utf-8", "replace")
        yield str(path), [b for b in cut_blank_lines(text) if is_link_list(b) or "toctree" in b]
    for path in list_other_readmes():
        blocks = cut_blank_lines(path.read_text("utf-8", "replace").partition("\n\n")[2])
        yield path.parent.name, [b for b in blocks if "[![" in b or is_link_list(b) or ".. image::" in b]
    countries = {}
    for language in _LANGUAGES:
        path = Path("/usr/share/locale", language, "LC_MESSAGES", "iso_3166.mo")
        if path.is_file():
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            countries[language] = [v for k, v in catalogue.items() if k and isinstance(v, str)]
    rng = random.Random(5)
    titles = sorted({t for t in titles if 3 < len(t) < 60}) or ["Introduction", "Index"]
    for number in range(1500):
        language = rng.choice([None, None, None, *sorted(countries)])
        words = rng.sample(titles if language is None else countries[language], rng.randint(4, 14))
        yield f"menu {number}", [_make_menu(rng, words)]


def _make_menu(rng: random.Random, words: list[str]) -> str:
    slug = [re.sub(r"\W+", "_", w.lower()) for w in words]
    kind = rng.randrange(7)
    if kind == 0:
        return "\n".join(f"  - [{w}](./{s}.md)" for w, s in zip(words, slug, strict=True))
    if kind == 1:
        return rng.choice((" - ", " — ", " :: ", " ~ ", ", ", "\t")).join(words)
    if kind == 2:
        return "\n".join(words)
    if kind == 3:
        return "\n".join(f"{i}.{rng.randint(1, 9)}  {w}  {rng.randrange(400)}" for i, w in enumerate(words, 1))
    if kind == 4:
        return "\n".join(f"* {w}" for w in words)
    if kind == 5:
        return " -> ".join(words[:4])
    return "\n".join(f"+ `{w} <https://docs.test/{s}.html>`_" for w, s in zip(words, slug, strict=True))


def read_tables() -> Iterator[tuple[str, list[str]]]:
    """Tables of numbers: colours, time zones and services of this machine, generated ones, and encoded bytes."""
    for name in ("/usr/share/X11/rgb.txt", "/usr/share/zoneinfo/zone.tab", "/etc/services"):
        path = Path(name)
        if path.is_file():
            yield from list(group_lines(name, path.read_text("utf-8", "replace").splitlines()))[:60]
    rng = random.Random(11)
    for number in range(1200):
        yield f"table {number}", [_make_table(rng)]
    for number in range(150):
        blob = rng.randbytes(rng.randint(20, 300))
        texts = (base64.b64encode(blob).decode(), base64.encodebytes(blob).decode(), blob.hex(), blob.hex(" ", 2))
        yield f"blob {number}", [rng.choice(texts)]


def _make_table(rng: random.Random) -> str:
    width, height = rng.randint(2, 7), rng.randint(2, 10)
    rows = [[_make_cell(rng) for _ in range(width)] for _ in range(height)]
    head = rng.sample(_CITY, width)
    kind = rng.randrange(6)
    if kind == 0:
        return "\n".join(";".join(r) for r in [head, *rows])
    if kind == 1:
        return "\n".join("  ".join(f"{c:<9}" for c in r) for r in rows)
    if kind == 2:
        rule = " ".join(["=" * 9] * width)
        return "\n".join([rule, *(" ".join(f"{c:>9}" for c in r) for r in [head, *rows]), rule])
    if kind == 3:
        return "\n".join(" & ".join(r) + r" \\" for r in rows)
    if kind == 4:
        names = rng.choices(_CITY, k=height)
        return "\n".join(f"{n:<12} {'  '.join(r)}" for n, r in zip(names, rows, strict=True))
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * width, *rows])


def _make_cell(rng: random.Random) -> str:
    value = rng.gauss(0, 10 ** rng.randrange(6))
    return rng.choice((f"{value:.0f}", f"{value:.3f}", f"{abs(value):.1f}%", f"{value:.2e}", f"{abs(value):,.0f}", "-"))


_JUNK_CHARACTERS: Final = "-=_*#~+.|/xXaz0\0\x01\x1b\ufffd\U0001f600\U0001f389\u2588\u2500\u2022\u2764\u6211\u0430"


def read_junk() -> Iterator[tuple[str, list[str]]]:
    """Rules, pictures, control characters and one thing again and again."""
    rng = random.Random(13)
    for number in range(1000):
        length = rng.randint(10, 300)
        characters = rng.sample(_JUNK_CHARACTERS, rng.choice((1, 1, 1, 2, 3)))
        single = characters[0] * length
        mixed = "".join(rng.choices(characters, k=length))
        words = f"{rng.choice(_CITY)} " * (length // 4)
        yield f"junk {number}", [rng.choice((single, mixed, words))]
