"""Builds the frozen background of density: actors/density_background.bin and .json.

    python tests/bench/build_density_background.py [--check]

What it reads stands on the machine that it is run on: Python's own sources, documentation of installed tools, message
catalogues, manual pages in other languages, changelogs, copyright files and logs. Other machines hold other files, so
the built files are committed and nothing is built at run time; from the same files it writes the same bytes.

Nothing that the evaluation uses is read here: no installed distribution of this environment, none of
``pydoc_data.topics``, no PEP or RFC, no licence of the held-out families and no changelog of the held-out packages
(filler.py); the generators below share neither format nor vocabulary with those of filler.py.

Half of the documents make the tables, the other half fits the weights, so that the fit sees words as a new text would
bring them.
"""

from __future__ import annotations

import argparse
import ast
import gettext
import gzip
import hashlib
import html
import json
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
from filler import cut_blank_lines, is_held_out_licence, is_held_out_package
from numpy.typing import NDArray

from lodestream.actors import density
from lodestream.actors.density_background import NUM_SHAPES, NUM_SLOTS, VALUE_UNIT, Background, find_slots

OUTPUT: Final = Path(density.__file__).resolve().parent
MAX_ENTRIES: Final = 40_000
MAX_PARAGRAPH_CHARS: Final = 4_000
RIDGE: Final = 20.0
SIGNS: Final = {
    "shape": 1,
    "shape_low": 1,
    "words_prose": 1,
    "words_filler": 1,
    "novelty": 1,
    "letters": 1,
    "digits": -1,
    "markup": -1,
    "symbols": -1,
    "capitals": -1,
    "titles": -1,
    "links": -1,
    "stops": 1,
    "length": 1,
    "words": 1,
    "repeated_pairs": -1,
    "repeated_runs": -1,
    "repeated_starts": -1,
}
"""Which way a signal may point. One that the fit would turn round is left out, so that every weight can be explained."""

PROSE_SHARES: Final = {"docs": 0.45, "docstrings": 0.2, "snippets": 0.1, "foreign": 0.25}
FILLER_SHARES: Final = {"licences": 0.2, "changelogs": 0.25, "logs": 0.15, "navigation": 0.25, "tables": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One paragraph; ``group`` is a name of PROSE_SHARES or FILLER_SHARES."""

    group: str
    text: str
    for_tables: bool


def take_half(name: str) -> bool:
    """Whether the document of that name makes the tables; the others fit the weights."""
    return hashlib.blake2b(name.encode(), digest_size=1, key=b"half").digest()[0] < 128


def sample_documents(group: str, documents: Iterable[tuple[str, list[str]]], limit: int) -> list[Sample]:
    """At most ``limit`` paragraphs of a group, spread evenly over what there is, without copies."""
    seen: dict[str, Sample] = {}
    for name, paragraphs in documents:
        for text in paragraphs:
            # Numbers apart, the same lines stand in many documents; once is enough.
            key = re.sub(r"\d+", "0", " ".join(text.lower().split()))
            sample = Sample(group=group, text=text[:MAX_PARAGRAPH_CHARS], for_tables=take_half(name))
            seen.setdefault(key, sample)
    kept = list(seen.values())
    step = max(1.0, len(kept) / limit)
    return [kept[int(i * step)] for i in range(min(limit, len(kept)))]


# ---- prose -------------------------------------------------------------------------------------------------------------


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
    own = {d.metadata["Name"].lower().replace("-", "_") for d in metadata.distributions()}
    for path in sorted(Path("/root/.pyenv/versions").glob("*/lib/python3*/site-packages/*.dist-info/METADATA")):
        name = path.parent.name.split("-")[0].lower()
        if name not in own:
            yield name, clean_paragraphs(path.read_text("utf-8", "replace").partition("\n\n")[2])
    for path in sorted(Path("/root/.rustup/toolchains").glob("stable*/share/doc/rust/html/book/ch*.html")):
        main = path.read_text("utf-8").partition("<main>")[2].partition("</main>")[0]
        blocks = re.findall(r"<p>(.*?)</p>", main, re.DOTALL)
        yield path.name, [strip_html(b) for b in blocks]


_SKIPPED_HEADING: Final = re.compile(r"licen[cs]e|changelog|change log|release notes|history|links|badges|contents", re.IGNORECASE)
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
    return len(lines) > 2 and all(re.match(r"^\s*([*\-+]\s+)?(\[[^\]]*\]\([^)]*\)|[\w/.\-]+|\S*://\S*)\s*$", x) for x in lines)


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


_LANGUAGES: Final = "ar cs da de el es fa fi fr he hi hu id it ja ko nl pl pt pt_BR ro ru sv th tr uk vi zh_CN zh_TW".split()


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


# ---- filler ------------------------------------------------------------------------------------------------------------


def read_licences() -> Iterator[tuple[str, list[str]]]:
    """Licences of families that are not held out: GPL, LGPL, Apache, BSD, MIT and their kin."""
    paths = [Path("/usr/share/common-licenses", n) for n in ("GPL-2", "GPL-3", "LGPL-2.1", "LGPL-3", "Apache-2.0", "BSD")]
    paths += sorted(Path("/usr/share/doc").glob("*/copyright"))
    paths += sorted(Path("/root/.pyenv/versions").glob("*/lib/python3*/site-packages/*/LICENSE*"))
    paths += sorted(Path("/usr/lib/node_modules").rglob("LICENSE*"))
    for path in paths:
        if path.is_file():
            blocks = cut_blank_lines(re.sub(r"(?m)^ \.$", "", path.read_text("utf-8", "replace")))
            yield str(path), [b for b in blocks if not is_held_out_licence(b)]


def read_changelogs() -> Iterator[tuple[str, list[str]]]:
    """Beginnings of the changelogs of packages that are not held out."""
    for path in sorted(Path("/usr/share/doc").glob("*/changelog*.gz")):
        if not is_held_out_package(path.parent.name):
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                yield path.parent.name, cut_blank_lines(file.read(3_000))
    roots = sorted(Path("/root/.pyenv").glob("CHANGELOG*")) + sorted(Path("/usr/lib/node_modules").rglob("CHANGELOG*"))
    roots += sorted(Path("/root/.pyenv/versions").glob("*/lib/python3*/idlelib/[CNH]*[gtT]*"))
    for path in roots:
        if path.is_file():
            yield str(path), cut_blank_lines(path.read_text("utf-8", "replace")[:20_000])


def read_logs() -> Iterator[tuple[str, list[str]]]:
    """Logs of this machine, and generated ones of five formats."""
    for name in ("dpkg.log", "alternatives.log", "apt/term.log", "apt/history.log", "postgresql/postgresql-15-main.log"):
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


_CITY: Final = "oslo lima cairo delhi quito dakar tunis sofia minsk hanoi seoul perth turin basel porto malmo".split()


def _python_log(rng: random.Random) -> str:
    text = rng.choice(("connection reset by peer", "worker exiting", "loaded 32 rules", "timeout after 30s", "cache miss"))
    level = rng.choice(("DEBUG", "INFO", "WARNING", "ERROR"))
    return f"2023-11-{rng.randint(1, 28):02} 0{rng.randrange(10)}:{rng.randrange(60):02}:07,{rng.randrange(999):03} {level} {rng.choice(_CITY)}.worker: {text}"


def _clf_log(rng: random.Random) -> str:
    return f'host{rng.randrange(99)} - {rng.choice(_CITY)} [0{rng.randint(1, 9)}/Oct/2000:13:55:36 -0700] "POST /{rng.choice(_CITY)}.gif HTTP/1.0" 200 {rng.randrange(9999)}'


def _syslog(rng: random.Random) -> str:
    return f"<{rng.randrange(191)}>1 2003-10-11T22:14:15.{rng.randrange(999):03}Z {rng.choice(_CITY)} app {rng.randrange(9999)} ID{rng.randrange(99)} - event logged"


def _android_log(rng: random.Random) -> str:
    return f"03-17 16:13:{rng.randrange(60):02}.{rng.randrange(999):03}  {rng.randrange(4000)}  {rng.randrange(4000)} {rng.choice('VDIWE')} {rng.choice(_CITY).title()}Manager: state={rng.randrange(9)} flags=0x{rng.getrandbits(16):x}"


def _make_log(rng: random.Random) -> str:
    return f"[{rng.randrange(100):3}%] Building C object src/CMakeFiles/{rng.choice(_CITY)}.dir/{rng.choice(_CITY)}.c.o"


def read_navigation() -> Iterator[tuple[str, list[str]]]:
    """Menus and tables of contents: of manuals, of books, lists of countries in many languages, badges, link lists."""
    titles = []
    for path in sorted(Path("/root/.rustup/toolchains").glob("stable*/share/doc/rust/html/*/toc.html")):
        titles += [strip_html(t) for t in re.findall(r"<a [^>]*>(.*?)</a>", path.read_text("utf-8"), re.DOTALL)]
    for path in sorted(Path("/usr/share/cmake-3.25/Help").rglob("*.rst")):
        text = path.read_text("utf-8", "replace")
        yield str(path), [b for b in cut_blank_lines(text) if is_link_list(b) or "toctree" in b]
    for path in sorted(Path("/root/.pyenv/versions").glob("*/lib/python3*/site-packages/*.dist-info/METADATA")):
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
    """Tables of numbers: colours, time zones and character maps of this machine, and generated ones."""
    for name in ("/usr/share/X11/rgb.txt", "/usr/share/zoneinfo/zone.tab", "/etc/services"):
        path = Path(name)
        if path.is_file():
            yield from list(group_lines(name, path.read_text("utf-8", "replace").splitlines()))[:60]
    rng = random.Random(11)
    for number in range(1200):
        width, height = rng.randint(2, 7), rng.randint(2, 10)
        rows = [[_make_cell(rng) for _ in range(width)] for _ in range(height)]
        head = rng.sample(_CITY, width)
        kind = rng.randrange(6)
        if kind == 0:
            text = "\n".join(";".join(r) for r in [head, *rows])
        elif kind == 1:
            text = "\n".join("  ".join(f"{c:<9}" for c in r) for r in rows)
        elif kind == 2:
            rule = " ".join(["=" * 9] * width)
            text = "\n".join([rule, *(" ".join(f"{c:>9}" for c in r) for r in [head, *rows]), rule])
        elif kind == 3:
            text = "\n".join(" & ".join(r) + r" \\" for r in rows)
        elif kind == 4:
            names = rng.choices(_CITY, k=height)
            text = "\n".join(f"{n:<12} {'  '.join(r)}" for n, r in zip(names, rows, strict=True))
        else:
            text = "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * width, *rows])
        yield f"table {number}", [text]


def _make_cell(rng: random.Random) -> str:
    value = rng.gauss(0, 10 ** rng.randrange(6))
    return rng.choice((f"{value:.0f}", f"{value:.3f}", f"{abs(value):.1f}%", f"{value:.2e}", f"{abs(value):,.0f}", "-"))


# ---- tables ------------------------------------------------------------------------------------------------------------


def collect_samples() -> list[Sample]:
    """All paragraphs, group by group."""
    readers = (
        ("docs", read_docs, 30_000),
        ("docstrings", read_docstrings, 15_000),
        ("snippets", read_snippets, 4_000),
        ("foreign", read_foreign, 8_000),
        ("licences", read_licences, 8_000),
        ("changelogs", read_changelogs, 16_000),
        ("logs", read_logs, 3_000),
        ("navigation", read_navigation, 4_000),
        ("tables", read_tables, 2_000),
    )
    return [s for group, read, limit in readers for s in sample_documents(group, read(), limit)]


def weigh_samples(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """float64 [N]: prose and filler weigh one each, their groups by the shares above."""
    sizes = Counter(s.group for s in samples)
    shares = PROSE_SHARES | FILLER_SHARES
    return np.array([shares[s.group] / sizes[s.group] for s in samples])


def build_shapes(samples: Sequence[Sample], weights: NDArray[np.float64]) -> NDArray[np.int8]:
    """int8 [NUM_SHAPES]: smoothed log-odds of each window of four classes."""
    totals = np.zeros((2, NUM_SHAPES))
    for sample, weight in zip(samples, weights, strict=True):
        grams = density.shape_windows(density.Batch([sample.text]))
        grams = grams[(grams & 0xF != 0) & (grams >> 12 != 0) & (grams >> 4 & 0xF != 0) & (grams >> 8 & 0xF != 0)]
        if len(grams):
            # A long table must not outweigh a hundred short ones.
            counts = np.bincount(grams, minlength=NUM_SHAPES)
            totals[int(sample.group in FILLER_SHARES)] += weight * counts / max(len(grams), 100)
    smoothing = 2e-6
    return quantise(np.log((totals[0] + smoothing) / (totals[1] + smoothing)))


def quantise(log_odds: NDArray[np.float64]) -> NDArray[np.int8]:
    """Sixteenths, within int8."""
    return np.clip(np.rint(log_odds * VALUE_UNIT), -80, 80).astype(np.int8)


def build_words(samples: Sequence[Sample], weights: NDArray[np.float64]) -> NDArray[np.uint16]:
    """uint16 [NUM_SLOTS]: the words, pairs and triples that say most about prose or filler."""
    shares: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    seen: Counter[int] = Counter()
    for sample, weight in zip(samples, weights, strict=True):
        if sample.group == "foreign" or not sample.text.isascii():
            continue  # of one language only, or other languages would be better known than others
        words = density.Words(density.Batch([sample.text]))
        hashes = set(words.singles.tolist()) | set(words.pairs.tolist()) | set(words.triples.tolist())
        side = shares[int(sample.group in FILLER_SHARES)]
        for value in hashes:
            side[value] += weight
            seen[value] += 1
    hashes = np.array(sorted(h for h, n in seen.items() if n >= 4), np.uint32)
    prose, filler = (np.array([c[h] for h in hashes.tolist()]) for c in shares)
    smoothing = 1e-4
    log_odds = np.log((prose + smoothing) / (filler + smoothing))
    # What is frequent and one-sided says most; what is frequent and even-handed is known, hence not novel.
    benefit = (prose + filler) * (np.abs(log_odds) + 0.2)
    order = np.argsort(-benefit, kind="stable")[:MAX_ENTRIES]
    return fill_slots(hashes[order], quantise(log_odds[order]))


def fill_slots(hashes: NDArray[np.uint32], values: NDArray[np.int8]) -> NDArray[np.uint16]:
    """The hash table; of two that meet in a slot the one of more benefit, which comes first, stays."""
    slots, tags = find_slots(hashes)
    table = np.zeros(NUM_SLOTS, np.uint16)
    entries = (tags << np.uint16(8)) | values.view(np.uint8)
    table[slots[::-1]] = entries[::-1]
    return table


# ---- weights -----------------------------------------------------------------------------------------------------------


def fit_weights(
    signals: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, float]:
    """Logistic regression with a ridge on standardised signals and signs as in SIGNS; weights are for raw signals."""
    weights = weights * (len(weights) / weights.sum())
    mean = np.average(signals, axis=0, weights=weights)
    scale = np.sqrt(np.average((signals - mean) ** 2, axis=0, weights=weights)) + 1e-9
    design = np.concatenate([(signals - mean) / scale, np.ones((len(signals), 1))], axis=1)
    signs = np.array([SIGNS.get(name, 0) for name in (*density.SIGNALS, "bias")])
    allowed = np.ones(design.shape[1], np.bool_)
    while True:
        beta = np.zeros(design.shape[1])
        beta[allowed] = solve_logistic(design[:, allowed], labels, weights)
        wrong = beta * signs < 0
        if not wrong.any():
            break
        # The worst one goes, then the rest is fitted anew: the others may have leant on it.
        allowed[np.argmin(np.where(wrong, beta * signs, 0.0))] = False
    raw = beta[:-1] / scale
    named = {name: round(float(w), 3) for name, w in zip(density.SIGNALS, raw, strict=True)}
    return named | {"bias": round(float(beta[-1] - (raw * mean).sum()), 3)}


def solve_logistic(
    design: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients by Newton's method; the last column is the constant and bears no ridge."""
    ridge = np.full(design.shape[1], RIDGE)
    ridge[-1] = 0.0
    beta = np.zeros(design.shape[1])
    for _ in range(30):
        guess = 1.0 / (1.0 + np.exp(-design @ beta))
        gradient = design.T @ (weights * (labels - guess)) - ridge * beta
        curvature = (design * (weights * guess * (1.0 - guess))[:, None]).T @ design + np.diag(ridge)
        beta += np.linalg.solve(curvature, gradient)
    return beta


def build() -> tuple[bytes, bytes]:
    """The bytes of the two files."""
    samples = collect_samples()
    sizes = dict(sorted(Counter(s.group for s in samples).items()))
    first = [s for s in samples if s.for_tables]
    second = [s for s in samples if not s.for_tables]
    shapes, words = build_shapes(first, weigh_samples(first)), build_words(first, weigh_samples(first))
    blank = Background(shapes=shapes, words=words, weights={}, digest="")
    texts = [s.text for s in second]
    signals = np.concatenate([density.measure_signals(texts[a:b], blank) for a, b in density.plan_batches(texts)])
    labels = np.array([float(s.group in PROSE_SHARES) for s in second])
    weights = fit_weights(signals, labels, weigh_samples(second))
    body = {"paragraphs": sizes, "used_slots": int((words != 0).sum()), "weights": weights}
    return shapes.tobytes() + words.astype("<u2").tobytes(), (json.dumps(body, indent=2) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the files would be the same")
    arguments = parser.parse_args()
    for suffix, content in zip((".bin", ".json"), build(), strict=True):
        path = OUTPUT / f"density_background{suffix}"
        if arguments.check:
            print(f"{path.name}: {'same' if path.read_bytes() == content else 'differs'}")
        else:
            path.write_bytes(content)
            print(f"{path.name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
