"""How well density tells filler from the paragraphs of real documents, and how fast it is.

    python tests/bench/bench_density.py [--speed]

The real documents are the demo corpus (READMEs of the installed distributions, Python's language reference) and, where
LODESTREAM_STREAMS names their folder, PEPs and RFCs. They hold filler of their own (badges, references, release notes,
licence sections), which counts against the score here; the figures of kind "text" hold less of it. Where the filler
comes from, and how it is kept apart from what the background was built from, is told in filler.py.

Writes docs/bench/density.jsonl and docs/density.png; the speed, by processor time, goes to density_speed.jsonl, and
--speed measures that alone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import filler
import harness
import numpy as np
from corpora import read_corpus
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lodestream.actors.density import BASE_BELOW, DensityModel
from lodestream.actors.paragraphs import split_paragraphs, text_format_of

NAME = "density"
SPEED_NAME = "density_speed"
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "density.png"
STREAMS = {"PEPs": "stream_peps_12m.parquet", "RFCs": "stream_rfcs_12m.parquet"}
MAX_DOCUMENTS = 150
BATCH = 500

Scores = NDArray[np.float32]


def read_corpora(*, with_streams: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, text by file name) of each corpus of real documents."""
    folder = os.environ.pop("LODESTREAM_STREAMS", "")
    _, demo = read_corpus()
    yield "READMEs", {name: text for name, text in demo.items() if name.startswith("readmes/")}
    yield "language reference", {name: text for name, text in demo.items() if name.startswith("python/")}
    if not folder:
        return
    os.environ["LODESTREAM_STREAMS"] = folder
    if not with_streams:
        return
    for name, stream in STREAMS.items():
        if (Path(folder) / stream).is_file():
            _, texts = read_corpus(stream)
            picked = sorted(texts)[:: max(1, len(texts) // MAX_DOCUMENTS)]
            yield name, {n: texts[n] for n in picked}


def cut_corpus(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Paragraphs by kind."""
    paragraphs: dict[str, list[str]] = {}
    for name, text in texts.items():
        for p in split_paragraphs(text, text_format_of(name)):
            paragraphs.setdefault(p.kind, []).append(text[p.char_start : p.char_end])
    return paragraphs


def area_under_curve(real: Scores, other: Scores) -> float:
    """Chance that a paragraph of ``real`` scores above one of ``other``; a tie counts half."""
    ranked = np.sort(other)
    below = np.searchsorted(ranked, real, "left") + np.searchsorted(ranked, real, "right")
    return float(below.mean() / 2 / len(ranked))


def record_areas(corpus: str, scope: str, real: Scores, filled: Mapping[str, Scores]) -> None:
    """AUC of each class, and of all classes in equal parts, which is their mean."""
    config = {"corpus": corpus, "paragraphs": scope, "num_paragraphs": len(real)}
    areas = {name: area_under_curve(real, scores) for name, scores in filled.items()}
    for name, area in areas.items():
        harness.record(NAME, "lodestream", f"AUC {corpus}, {scope}", "", [area], x=name, config=config)
    mean = float(np.mean(list(areas.values())))
    harness.record(NAME, "lodestream", f"AUC {corpus}, {scope}", "", [mean], x="all classes", config=config)


def record_share(what: str, group: str, scores: Scores) -> None:
    """Share of paragraphs below the default threshold."""
    config = {"base_below": BASE_BELOW, "num_paragraphs": len(scores)}
    share = float((scores < np.float32(BASE_BELOW)).mean())
    harness.record(NAME, "lodestream", f"share below, {what}", "", [share], x=group, config=config)


def measure_speed(model: DensityModel, paragraphs: list[str]) -> None:
    """MB/s of UTF-8 of one core, in batches of BATCH paragraphs; by processor time, for one thread does it all."""
    harness.start(SPEED_NAME)
    longer = [p for p in paragraphs if len(p) >= 120]
    size_bytes = sum(len(p.encode("utf-8", "surrogatepass")) for p in longer)
    batches = [longer[i : i + BATCH] for i in range(0, len(longer), BATCH)]
    values = []
    for _ in range(9):
        timing = harness.measure_time(lambda: [model.score(batch) for batch in batches])
        values.append(size_bytes / 1e6 / timing.cpu_seconds)
    config = {"mean_bytes": round(size_bytes / len(longer)), "batch": BATCH, "num_threads": 1}
    harness.record(SPEED_NAME, "lodestream", "speed", "MB/s", values, config=config)
    for name, texts in {"one paragraph of 1 MB": ["lorem ipsum " * 83_334], "10,000 words": ["word"] * 10_000}.items():
        values = []
        for _ in range(9):
            values.append(harness.measure_time(partial(model.score, texts)).cpu_seconds * 1e3)
        harness.record(SPEED_NAME, "lodestream", "time", "ms", values, x=name)


def draw(real: Mapping[str, Scores], filled: Mapping[str, Scores]) -> None:
    """Draws the share of paragraphs at or below each score: filler rises at once, prose at the end."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for names, style in ((real, "-"), (filled, "--")):
        for name, scores in names.items():
            axes.plot(np.sort(scores), np.linspace(0, 1, len(scores)), style, linewidth=1.6, label=name)
    axes.axvline(BASE_BELOW, color="black", linewidth=0.8)
    axes.text(BASE_BELOW + 0.01, 0.28, f"base_below = {BASE_BELOW}", fontsize=9)
    axes.set_xlabel("density")
    axes.set_ylabel("share of paragraphs at or below it")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true", help="measure the speed alone")
    model = DensityModel.default()
    if parser.parse_args().speed:
        cut = [cut_corpus(texts) for _, texts in read_corpora(with_streams=True)]
        measure_speed(model, [p for paragraphs in cut for kind in paragraphs.values() for p in kind])
        return
    harness.start(NAME)
    filled = {name: model.score(texts) for name, texts in filler.collect_filler().items()}
    for name, scores in filled.items():
        record_share("filler", name, scores)
    everything, shown = [], {}
    by_scope: dict[str, list[Scores]] = {"all": [], "text": []}
    for corpus, texts in read_corpora(with_streams=True):
        paragraphs = cut_corpus(texts)
        everything += [p for kind in paragraphs.values() for p in kind]
        scored = {kind: model.score(found) for kind, found in paragraphs.items()}
        for kind, scores in scored.items():
            record_share(corpus, kind, scores)
        for scope, real in (("all", np.concatenate(list(scored.values()))), ("text", scored["text"])):
            record_areas(corpus, scope, real, filled)
            by_scope[scope].append(real)
        shown[f"{corpus}, text"] = scored["text"]
    for scope, parts in by_scope.items():
        record_areas("all corpora", scope, np.concatenate(parts), filled)
    known = model.score(list(filler.collect_known_licences()))
    record_share("filler", "licences of known families", known)
    measure_speed(model, everything)
    draw(shown, filled)


if __name__ == "__main__":
    main()
