"""Builds the frozen background of density: actors/density_background.bin and .json.

    python tests/bench/build_density_background.py [--check | --overlap]

What it reads stands on the machine that it is run on: Python's own sources, documentation of installed tools, message
catalogues, manual pages in other languages, changelogs, copyright files and logs. Other machines hold other files, so
the built files are committed and nothing is built at run time; from the same files it writes the same bytes.

Nothing that the evaluation uses is read here: no installed distribution of this environment, none of
``pydoc_data.topics``, no PEP or RFC, no file with a licence of the held-out families, and no changelog of the held-out
sources (filler.py); the generators of density_background_sources.py share neither format nor vocabulary with those of
filler.py. Texts are copied between packages all the same, so every paragraph that shares runs of six words with the
evaluation's filler or demo corpus is dropped; ``--overlap`` counts what is left.

Half of the documents make the tables, the other half fits the weights, so that the fit sees words as a new text would
bring them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bench_density
import density_background_sources as sources
import filler
import numpy as np
from numpy.typing import NDArray

from lodestream.actors import density
from lodestream.actors.density_background import NUM_SHAPES, NUM_SLOTS, VALUE_UNIT, Background, find_slots

OUTPUT: Final = Path(density.__file__).resolve().parent
MAX_ENTRIES: Final = 40_000
MAX_PARAGRAPH_CHARS: Final = 4_000
RIDGE: Final = 20.0
MAX_SHARED: Final = 15
MAX_SHARED_PART: Final = 0.2
SIGNS: Final = {
    "shape": 1,
    "words_prose": 1,
    "words_filler": 1,
    "novelty": 1,
    "sentence_ends": 1,
    "titles": -1,
    "links": -1,
    "repeated_pairs": -1,
    "repeated_starts": -1,
    "repeated_characters": -1,
    "letters": 1,
}
"""Which way a signal may point. One that the fit would turn round gets no weight: all can be explained."""

PROSE_SHARES: Final = {"docs": 0.45, "docstrings": 0.2, "snippets": 0.1, "foreign": 0.25}
FILLER_SHARES: Final = {
    "licences": 0.2,
    "changelogs": 0.25,
    "logs": 0.15,
    "navigation": 0.22,
    "tables": 0.13,
    "junk": 0.05,
}


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


# ---- tables ---------------------------------------------------------------------------------------------------------


def collect_samples() -> list[Sample]:
    """All paragraphs, group by group, up to the number given for each."""
    readers = (
        ("docs", sources.read_docs, 30_000),
        ("docstrings", sources.read_docstrings, 15_000),
        ("snippets", sources.read_snippets, 4_000),
        ("foreign", sources.read_foreign, 8_000),
        ("licences", sources.read_licences, 8_000),
        ("changelogs", sources.read_changelogs, 16_000),
        ("logs", sources.read_logs, 3_000),
        ("navigation", sources.read_navigation, 4_000),
        ("tables", sources.read_tables, 2_000),
        ("junk", sources.read_junk, 1_000),
    )
    samples = [s for group, read, limit in readers for s in sample_documents(group, read(), limit)]
    evaluated = list_six_grams(evaluation_texts())
    return [s for s in samples if not is_copied(six_grams(s.text), evaluated)]


def evaluation_texts() -> list[str]:
    """What the evaluation uses on every machine: filler and the demo corpus."""
    corpora = [texts for _, texts in bench_density.read_corpora(with_streams=False)]
    paragraphs = [p for texts in corpora for kind in bench_density.cut_corpus(texts).values() for p in kind]
    return [t for texts in filler.collect_filler().values() for t in texts] + paragraphs


def six_grams(text: str) -> set[str]:
    """The runs of six words of a text."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {" ".join(words[i : i + 6]) for i in range(len(words) - 5)}


def list_six_grams(texts: Iterable[str]) -> set[str]:
    """The runs of six words of all texts."""
    return set().union(*(six_grams(text) for text in texts))


def is_copied(grams: set[str], of: set[str]) -> bool:
    """Whether a text has MAX_SHARED six-grams, or MAX_SHARED_PART of its own, in common with others."""
    shared = len(grams & of)
    return shared >= MAX_SHARED or shared > MAX_SHARED_PART * len(grams)


def report_overlap() -> None:
    """Prints the share of the evaluation's paragraphs of which the background's sources hold most of the six-grams."""
    known = list_six_grams(s.text for s in collect_samples())
    groups = dict(filler.collect_filler())
    for name, texts in bench_density.read_corpora(with_streams=True):
        groups[name] = [p for kind in bench_density.cut_corpus(texts).values() for p in kind]
    for name, texts in groups.items():
        grams = [g for text in texts if (g := six_grams(text))]
        copied = sum(len(g & known) > len(g) / 2 for g in grams)
        print(f"{name}: {copied} of {len(grams)} paragraphs ({copied / len(grams):.1%}) are more than half known")


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
        present = set(words.singles.tolist()) | set(words.pairs.tolist()) | set(words.triples.tolist())
        side = shares[int(sample.group in FILLER_SHARES)]
        for value in present:
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


# ---- weights --------------------------------------------------------------------------------------------------------


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
    signals = np.concatenate(
        [density.measure_signals(density.Batch(texts[a:b]), blank) for a, b in density.plan_batches(texts)]
    )
    labels = np.array([float(s.group in PROSE_SHARES) for s in second])
    weights = fit_weights(signals, labels, weigh_samples(second))
    body = {"paragraphs": sizes, "used_slots": int((words != 0).sum()), "weights": weights}
    return shapes.tobytes() + words.astype("<u2").tobytes(), (json.dumps(body, indent=2) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the files would be the same")
    parser.add_argument("--overlap", action="store_true", help="write nothing; say how much the evaluation shares")
    arguments = parser.parse_args()
    if arguments.overlap:
        report_overlap()
        return
    for suffix, content in zip((".bin", ".json"), build(), strict=True):
        path = OUTPUT / f"density_background{suffix}"
        if arguments.check:
            print(f"{path.name}: {'same' if path.read_bytes() == content else 'differs'}")
        else:
            path.write_bytes(content)
            print(f"{path.name}: {len(content)} bytes")


if __name__ == "__main__":
    main()
