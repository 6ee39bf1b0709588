"""Filler for the evaluation of density: paragraphs that hold little to read, generated and collected from this machine.

Generated texts come from a seeded generator and have other formats and another vocabulary than those that the
background was built from (build_density_background.py has its own). Licences and changelogs are collected from the
installed distributions and, where it is there, from /usr/share/doc; those that the background was built from are left
out by ``is_held_out_changelog`` and ``is_held_out_licence``.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

CLASSES: Final = ("navigation", "licences", "logs", "changelogs", "tables")

_MAX_CHANGELOG_CHARS: Final = 12_000
_DOC_ROOT: Final = Path("/usr/share/doc")
_LICENCE_NAME: Final = re.compile(r"(licen[cs]e|copying|notice|eula)", re.IGNORECASE)
_CHANGELOG_NAME: Final = re.compile(r"(change|history|news|release)", re.IGNORECASE)

# A text with one of these belongs to a family that the background never saw.
HELD_OUT_LICENCES: Final = re.compile(
    r"Mozilla Public|Python Software Foundation|PSF LICENSE|CC0|Creative Commons|Free Documentation|Artistic|Historical"
    r"|Eclipse Public|Boost Software|Open Font|OFL|Unicode, Inc|zlib|CNRI|BEOPEN|Unlicense|public domain|HPND|MIT-CMU"
    r"|ISC Licen|PIL Software|Bitstream|Academic Free|Sleepycat|Permission to use, copy",
    re.IGNORECASE,
)


_KNOWN_LICENCES: Final = re.compile(
    r"Apache License|apache\.org|Redistribution and use|Redistributions|Permission is hereby granted, free|GNU (Lesser|"
    r"General|Affero|Library)|\bL?GPL|MIT License|BSD",
    re.IGNORECASE,
)
_DEBIAN_ENTRY: Final = re.compile(r"\s*([a-z0-9][a-z0-9.+\-]+) \([^)]+\) ")


def is_held_out_changelog(text: str) -> bool:
    """Whether a changelog is for evaluation; two in five are.

    Several packages of a system carry the changelog of the one source that they were built from, so the source's name
    decides, and where the text does not begin with one, the beginning of the text.
    """
    source = _DEBIAN_ENTRY.match(text)
    key = source[1] if source else " ".join(text[:300].lower().split())[:200]
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=1).digest()[0] % 5 < 2


def is_held_out_licence(text: str) -> bool:
    """Whether a licence text is of a family that is for evaluation."""
    return HELD_OUT_LICENCES.search(text) is not None


def normalise(text: str) -> str:
    """The text without what differs between two copies of it: case and white space."""
    return " ".join(text.lower().split())


def cut_blank_lines(text: str) -> list[str]:
    """Blocks between blank lines, without the white space around them."""
    return [block.strip() for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")) if block.strip()]


def collect_filler(seed: int = 7, num_generated: int = 400) -> dict[str, list[str]]:
    """Paragraphs of filler by class.

    Args:
        seed: of the generated ones.
        num_generated: generated paragraphs of each class that has a generator.
    """
    rng = random.Random(seed)
    generated = {name: [make(rng) for _ in range(num_generated)] for name, make in _GENERATORS.items()}
    return {
        "navigation": generated["navigation"],
        "licences": _distinct(collect_licences()),
        "logs": generated["logs"],
        "changelogs": _distinct(collect_changelogs()) + generated["changelogs"],
        "tables": generated["tables"],
    }


def collect_licences() -> Iterator[str]:
    """Paragraphs of licences of families that the background never saw.

    A file may hold licences of several families: what names a known one or stands in a known one's file is left out.
    """
    known = {normalise(text) for text in collect_known_licences()}
    files = [text for text in _distribution_files(_LICENCE_NAME) if is_held_out_licence(text)]
    paths = (
        Path("/usr/share/common-licenses", name) for name in ("MPL-2.0", "MPL-1.1", "CC0-1.0", "GFDL-1.3", "Artistic")
    )
    files += [path.read_text("utf-8", "replace") for path in paths if path.is_file()]
    for text in files:
        for block in cut_blank_lines(text)[:200]:
            if not _KNOWN_LICENCES.search(block) and normalise(block) not in known:
                yield block


def collect_known_licences() -> Iterator[str]:
    """Paragraphs of licence files of families that the background knows; they count in no AUC."""
    for text in _distribution_files(_LICENCE_NAME):
        if not is_held_out_licence(text):
            yield from cut_blank_lines(text)[:120]


def collect_changelogs() -> Iterator[str]:
    """Paragraphs of the beginnings of changelogs: of distributions, and of system packages that are held out."""
    for text in _distribution_files(_CHANGELOG_NAME):
        yield from cut_blank_lines(text[:_MAX_CHANGELOG_CHARS])
    for path in sorted(_DOC_ROOT.glob("*/changelog*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_CHANGELOG_CHARS // 6)
        if is_held_out_changelog(text):
            yield from cut_blank_lines(text)


def _distribution_files(name: re.Pattern[str]) -> Iterator[str]:
    found = sorted({str(f.locate()) for d in metadata.distributions() for f in d.files or () if name.search(f.name)})
    for path in map(Path, found):
        if path.suffix.lower() in ("", ".txt", ".md", ".rst") and path.is_file():
            yield path.read_text("utf-8", "replace")


def _distinct(texts: Iterator[str]) -> list[str]:
    seen: dict[str, str] = {}
    for text in texts:
        seen.setdefault(normalise(text), text)
    return [t for t in seen.values() if len(t) >= 20]


# ---- generators -----------------------------------------------------------------------------------------------------

_SECTIONS: Final = [
    "Home",
    "Products",
    "Solutions",
    "Pricing",
    "Documentation",
    "Blog",
    "Careers",
    "Contact",
    "Support",
    "Community",
    "Events",
    "Webinars",
    "Partners",
    "Newsroom",
    "Investors",
    "Privacy",
    "Terms",
    "Cookies",
    "Accessibility",
    "Sitemap",
    "Login",
    "Register",
    "Cart",
    "Wishlist",
    "Downloads",
    "Forum",
    "Shop",
    "Travel",
    "Sports",
    "Weather",
    "Business",
    "Culture",
    "Science",
    "Health",
    "Video",
    "Podcasts",
    "Newsletters",
    "Subscribe",
    "Advertise",
    "Archive",
]
_PAGES: Final = [
    "Quick tour",
    "Getting help",
    "Upgrading from 3.x",
    "Deploying to production",
    "Query builder",
    "Migrations",
    "Middleware",
    "Caching",
    "Mail and notifications",
    "Queues",
    "Task scheduling",
    "Testing views",
    "Mocking",
    "Encryption",
    "Rate limiting",
    "File storage",
    "Helpers",
    "Collections",
    "Localization",
    "Sessions",
    "Validation rules",
    "Error handling",
    "Service container",
    "Release schedule",
    "Broadcasting",
]
_FRUIT: Final = [
    "alder",
    "birch",
    "cedar",
    "dogwood",
    "elm",
    "fir",
    "ginkgo",
    "hazel",
    "ironwood",
    "juniper",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "spruce",
]


def make_navigation(rng: random.Random) -> str:
    """A menu, breadcrumb trail, table of contents, pager, badge row or list of links."""
    kind = rng.randrange(8)
    pages = rng.sample(_PAGES, rng.randint(4, 12))
    tops = rng.sample(_SECTIONS, rng.randint(5, 12))
    slugs = [p.lower().replace(" ", "-") for p in pages]
    if kind == 0:
        return rng.choice([" | ", " · ", " • ", "  ", " / "]).join(tops)
    if kind == 1:
        return rng.choice([" > ", " » ", " / ", " › "]).join(["Home", *pages[:4]])
    if kind == 2:
        return "\n".join(f"* [{p}](#{s})" for p, s in zip(pages, slugs, strict=True))
    if kind == 3:
        return "\n".join(f"{i}. {p} {'.' * rng.randint(8, 40)} {i * 7}" for i, p in enumerate(pages, 1))
    if kind == 4:
        return "\n".join(tops)
    if kind == 5:
        project = rng.choice(_FRUIT)
        return "\n".join(
            f"[![{t}](https://img.example.org/{project}/{t.lower()}.svg?branch=main)](https://example.org/{project}/{t})"
            for t in tops[:6]
        )
    if kind == 6:
        return f"« Previous: {pages[0]} | Up: {pages[1]} | Next: {pages[2]} »"
    return "\n".join(
        f"- {p}: https://{rng.choice(_FRUIT)}.example.com/docs/{s}/" for p, s in zip(pages, slugs, strict=True)
    )


def make_log(rng: random.Random) -> str:
    """Some lines of one of eight log formats."""
    make = rng.choice([_nginx, _spring, _journal, _json_log, _kernel_log, _build_log, _test_log, _klog])
    return "\n".join(make(rng) for _ in range(rng.randint(3, 14)))


def _clock(rng: random.Random) -> str:
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}"


def _nginx(rng: random.Random) -> str:
    address = ".".join(str(rng.randrange(1, 255)) for _ in range(4))
    path = "/".join(rng.sample(_FRUIT, rng.randint(1, 3)))
    agent = rng.choice(
        ["Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0", "curl/8.5.0", "kube-probe/1.30"]
    )
    return (
        f'{address} - - [{rng.randint(1, 28):02}/Mar/2025:{_clock(rng)} +0000] "GET /{path}?page={rng.randrange(90)} '
        f'HTTP/1.1" {rng.choice([200, 200, 304, 404, 502])} {rng.randrange(99999)} "-" "{agent}"'
    )


def _spring(rng: random.Random) -> str:
    text = rng.choice(
        ["Started in 3.2 seconds", "HikariPool-1 - Start completed.", "Session expired", "Retrying request"]
    )
    return (
        f"2025-03-{rng.randint(1, 28):02} {_clock(rng)}.{rng.randrange(999):03}  "
        f"{rng.choice(['INFO', 'WARN', 'ERROR'])} {rng.randrange(9999)} --- [http-nio-8080-exec-{rng.randrange(20)}] "
        f"o.e.{rng.choice(_FRUIT)}.Service : {text}"
    )


def _journal(rng: random.Random) -> str:
    unit = rng.choice(["systemd", "sshd", "CRON", "dhclient", "NetworkManager"])
    text = rng.choice(
        [
            "Started Session 42 of user root.",
            "Accepted publickey for deploy from 10.0.4.7 port 51234 ssh2",
            "renewal in 3341 s",
        ]
    )
    return f"Mar {rng.randint(1, 28):2} {_clock(rng)} {rng.choice(_FRUIT)} {unit}[{rng.randrange(99999)}]: {text}"


def _json_log(rng: random.Random) -> str:
    return (
        f'{{"level":"{rng.choice(["info", "warn", "error"])}","ts":{1.7e9 + rng.random() * 1e7:.6f},"caller":"server/'
        f'{rng.choice(_FRUIT)}.go:{rng.randrange(900)}","msg":"request done","status":{rng.choice([200, 500])},'
        f'"elapsed_ms":{rng.random() * 400:.3f}}}'
    )


def _kernel_log(rng: random.Random) -> str:
    text = rng.choice(
        ["eth0: Link is Up", "EXT4-fs (sda1): mounted filesystem", "usb 1-1: new high-speed USB device number 4"]
    )
    return f"[{rng.random() * 9999:12.6f}] {text}"


def _build_log(rng: random.Random) -> str:
    step = rng.randrange(1, 30)
    layer = f"{rng.getrandbits(48):012x}"
    return rng.choice(
        [f"#{step} [{step}/30] RUN make -j8", f"#{step} sha256:{layer} 12.58MB / 31.42MB 0.{step}s", f"#{step} CACHED"]
    )


def _test_log(rng: random.Random) -> str:
    name = "_".join(rng.sample(_FRUIT, 2))
    outcome = rng.choice(["PASSED", "PASSED", "FAILED", "SKIPPED"])
    return f"tests/test_{name}.py::test_{name}[{rng.randrange(20)}] {outcome} [{rng.randrange(100):3}%]"


def _klog(rng: random.Random) -> str:
    return (
        f"{rng.choice('IWE')}03{rng.randint(1, 28):02} {_clock(rng)}.{rng.randrange(999999):06} {rng.randrange(9):7} "
        f"{rng.choice(_FRUIT)}.go:{rng.randrange(900)}] Syncing pod {rng.choice(_FRUIT)}-{rng.getrandbits(32):08x}"
    )


def make_changelog(rng: random.Random) -> str:
    """Some entries of a release in one of four forms."""
    number = f"{rng.randrange(9)}.{rng.randrange(30)}.{rng.randrange(10)}"
    entries = [_make_entry(rng) for _ in range(rng.randint(3, 9))]
    kind = rng.randrange(4)
    if kind == 0:
        return f"v{number} / 2024-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}\n" + "\n".join(
            f"  * {e}" for e in entries
        )
    if kind == 1:
        names = [f"(#{rng.randrange(9999)}) @{rng.choice(_FRUIT)}" for _ in entries]
        return "\n".join(f"- {e} {n}" for e, n in zip(entries, names, strict=True))
    if kind == 2:
        return "\n".join(f"{rng.getrandbits(28):07x} {e.lower()}" for e in entries)
    return f"Release {number}\n" + "\n".join(f"[{rng.choice(['FIX', 'NEW', 'DEV', 'DOC'])}] {e}" for e in entries)


def _make_entry(rng: random.Random) -> str:
    verb = rng.choice(
        ["Fix", "Fixed", "Add", "Added", "Remove", "Bump", "Update", "Refactor", "Drop", "Rename", "Revert"]
    )
    thing = rng.choice(
        [
            "typo in docs",
            "crash on empty input",
            "support for Python 3.13",
            "CI matrix",
            "memory leak in parser",
            "deps to latest",
        ]
        + [f"`{a}_{b}` option" for a, b in zip(_FRUIT[:6], _FRUIT[6:12], strict=True)]
    )
    return f"{verb} {thing}"


def make_table(rng: random.Random) -> str:
    """A table of numbers: comma- or tab-separated, aligned, Markdown, with grid lines, or a matrix."""
    width, height = rng.randint(3, 8), rng.randint(3, 12)
    digits = rng.randrange(5)
    cells = [[f"{rng.random() * 10 ** rng.randrange(5):.{digits}f}" for _ in range(width)] for _ in range(height)]
    heads = rng.sample(_FRUIT, width)
    kind = rng.randrange(6)
    if kind == 0:
        return "\n".join([",".join(heads), *(",".join(row) for row in cells)])
    if kind == 1:
        return "\n".join("\t".join(row) for row in cells)
    if kind == 2:
        return "\n".join(" ".join(f"{c:>10}" for c in row) for row in [heads, *cells])
    if kind == 3:
        rule = "|" + "---:|" * width
        return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in cells)])
    if kind == 4:
        rule = "+" + ("-" * 12 + "+") * width
        return "\n".join([rule, *("|" + "|".join(f"{c:>11} " for c in row) + "|" for row in cells), rule])
    return "[" + ",\n ".join("[" + ", ".join(row) + "]" for row in cells) + "]"


_GENERATORS: Final[dict[str, Callable[[random.Random], str]]] = {
    "navigation": make_navigation,
    "logs": make_log,
    "changelogs": make_changelog,
    "tables": make_table,
}
