"""The size of segments: what is encoded again after edits, beside how well what is encoded is found.

For each ``segment.target_tokens``: the share of edited and added documents' tokens in a segment never seen before, over
twelve months of real edits of the PEPs (as bench_reencode.py has it on file), and retrieval with the default model over
a sample of them (LODESTREAM_STREAMS): a document by its title (which is taken out of its text), and the first paragraph
below a heading by that heading, among all paragraphs of the sample. Headings that several documents have are left out.

The control: windows of 512 tokens from a document's start, as sentence-transformers users cut; a document is the mean
of its windows' unit vectors, a paragraph the mean of its tokens in them.

    LODESTREAM_STREAMS=FOLDER python tests/bench/bench_segment_size.py [--documents 100] [--targets 1 16 32 64 128 256]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import pyarrow as pa
from corpora import read_corpus
from numpy.typing import NDArray

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions
from lodestream.actors.segment import outline_documents
from lodestream.kernels.packing import pack

NAME = "segment_size"
TARGETS = (1, 16, 32, 64, 128, 256)
WINDOW = 512
CONTROL = "windows of 512"
STREAMS = ("stream_peps_12m", "stream_rfcs_12m")
MIN_CHARS, MAX_CHARS = 4_000, 30_000
MIN_HEADING_CHARS = 8
MAX_HEADINGS = 600

_TITLE = re.compile(r"^Title: (.*(?:\n[ \t]+.*)*)\n", re.MULTILINE)
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectorised:
    """The sample in one form: unit vectors of documents and of paragraphs, the latter with (document, first character)
    each."""

    documents: Vectors
    paragraphs: Vectors
    places: list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Unit vectors of titles, one a document, and of headings, with the place of the paragraph that each is above."""

    titles: Vectors
    headings: Vectors
    answers: list[tuple[int, int]]


def main() -> None:
    """Measures each target, then the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS))
    arguments = parser.parse_args()
    if not os.environ.get("LODESTREAM_STREAMS"):
        print("left out: LODESTREAM_STREAMS names no folder with stream_*.parquet")
        return
    titles, texts = sample(arguments.documents)
    harness.start(NAME)
    known: dict[bytes, LeafVectors] = {}
    questions = None
    for target in arguments.targets:
        featurizer = Featurizer(FeaturizerOptions(target_tokens=target))
        features = compute(featurizer, texts, known)
        if questions is None:
            questions = ask(featurizer, titles, texts, features)
        record(f"target_tokens {target}", target, questions, vectorise(features, len(texts)))
    assert questions is not None
    record(CONTROL, CONTROL, questions, cut_windows(featurizer, texts))
    print_table(arguments.targets)


def print_table(targets: Sequence[int]) -> None:
    """Both sides, a line for each target, as docs/spans.md has them."""
    lines = (harness.RESULTS / f"{NAME}.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(line["x"], line["metric"]): line["p50"] for line in map(json.loads, lines)}
    metrics = sorted({metric for _, metric in found})
    lines = (harness.RESULTS / "reencode.jsonl").read_text(encoding="utf-8").splitlines()
    shares = {(line["provider"], line["x"]): line["p50"] for line in map(json.loads, lines)}
    print("| target_tokens | encoded again, PEPs | RFCs |", " | ".join(metrics), "|")
    for target in (*targets, CONTROL):
        again = [shares.get((stream, target)) for stream in STREAMS]
        cells = ["-" if share is None else f"{share:.1%}" for share in again]
        print(f"| {target} |", " | ".join([*cells, *(f"{found[target, metric]:.3f}" for metric in metrics)]), "|")


def sample(number: int) -> tuple[list[str], list[str]]:
    """Titles and texts of documents spread over the corpus, the title taken out of the text."""
    _, corpus = read_corpus()
    usable = [text for text in corpus.values() if MIN_CHARS < len(text) < MAX_CHARS and _TITLE.search(text)]
    chosen = usable[:: max(1, len(usable) // number)][:number]
    titles = [" ".join(found[1].split()) for text in chosen if (found := _TITLE.search(text))]
    return titles, [_TITLE.sub("", text, count=1) for text in chosen]


# ---- vectors --------------------------------------------------------------------------------------------------------


def compute(featurizer: Featurizer, texts: Sequence[str], known: dict[bytes, LeafVectors]) -> pa.Table:
    """Feature rows of all texts; ``known`` segments are not encoded again and grow by the new ones."""
    tables = []
    for number, text in enumerate(texts):
        values = {"doc_id": [str(number)], "source": [""], "uri": [""], "source_version": [""], "text_format": ["rst"]}
        hashes = pa.array([hashlib.sha256(text.encode()).digest()], pa.binary(32))
        document = pa.table({**values, "content_hash": hashes, "text": pa.array([text], pa.large_string())})
        done = featurizer.encode(featurizer.prepare(document), known, run_id="")
        known |= done.encoded
        tables.append(done.features)
    return pa.concat_tables(tables)


def vectorise(features: pa.Table, number: int) -> Vectorised:
    """Documents and paragraphs without headings, from feature rows."""
    rows = features.select(["doc_id", "granularity", "kind", "char_start"]).to_pylist()
    codes = np.concatenate([chunk.flatten().to_numpy() for chunk in features.column("codes").chunks])
    vectors = _unit(codes.reshape(len(rows), -1).astype(np.float32))
    documents = [place for place, row in enumerate(rows) if row["granularity"] == "document"]
    assert len(documents) == number
    kept = [p for p, row in enumerate(rows) if row["granularity"] == "paragraph" and row["kind"] != "heading"]
    return Vectorised(
        documents=vectors[documents],
        paragraphs=vectors[kept],
        places=[(int(rows[place]["doc_id"]), rows[place]["char_start"]) for place in kept],
    )


def cut_windows(featurizer: Featurizer, texts: Sequence[str]) -> Vectorised:
    """The control."""
    tokenizer = featurizer.tokenizer
    room = WINDOW - len(tokenizer.prefix_ids) - len(tokenizer.suffix_ids)
    before = len(tokenizer.prefix_ids)
    documents, paragraphs, places = [], [], []
    for number, text in enumerate(texts):
        (outline,) = outline_documents([text], ["rst"], tokenizer, featurizer.segment_options)
        windows, states = [], []
        for start in range(0, len(outline.token_ids), room):
            ids = [tokenizer.prefix_ids, outline.token_ids[start : start + room], tokenizer.suffix_ids]
            window = featurizer.encoder.encode(pack([np.concatenate(ids)])).numpy()
            windows.append(window.mean(0))
            states.append(window[before : len(window) - len(tokenizer.suffix_ids)])
        documents.append(_unit(np.stack(windows)).mean(0))
        tokens = np.concatenate(states)
        for kind, (start, end), (char, _) in zip(
            outline.paragraph_kinds, outline.paragraph_tokens.tolist(), outline.paragraph_chars.tolist(), strict=True
        ):
            if kind != "heading":
                paragraphs.append(tokens[start:end].mean(0))
                places.append((number, char))
    return Vectorised(documents=_unit(np.stack(documents)), paragraphs=_unit(np.stack(paragraphs)), places=places)


def ask(featurizer: Featurizer, titles: Sequence[str], texts: Sequence[str], features: pa.Table) -> Questions:
    """Titles, and headings that one document has and that stand right above a paragraph, spread over the sample."""
    rows = features.select(["doc_id", "granularity", "kind", "char_start", "char_end"]).to_pylist()
    rows = sorted(
        (row for row in rows if row["granularity"] == "paragraph"), key=lambda r: (int(r["doc_id"]), r["char_start"])
    )
    found = [
        (texts[int(row["doc_id"])][row["char_start"] : row["char_end"]], (int(row["doc_id"]), after["char_start"]))
        for row, after in itertools.pairwise(rows)
        if row["kind"] == "heading" and after["kind"] != "heading" and row["doc_id"] == after["doc_id"]
    ]
    common = Counter(heading.lower() for heading, _ in found)
    own = [pair for pair in found if common[pair[0].lower()] == 1 and len(pair[0]) >= MIN_HEADING_CHARS]
    own = own[:: max(1, len(own) // MAX_HEADINGS)][:MAX_HEADINGS]
    return Questions(
        titles=np.stack([featurizer.embed(title) for title in titles]),
        headings=np.stack([featurizer.embed(heading) for heading, _ in own]),
        answers=[place for _, place in own],
    )


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


# ---- results --------------------------------------------------------------------------------------------------------


def record(provider: str, x: Any, questions: Questions, found: Vectorised) -> None:
    """Recall and mean reciprocal rank of both tasks."""
    places = {place: row for row, place in enumerate(found.places)}
    tasks: Mapping[str, NDArray[np.int64]] = {
        "title -> document": rank(questions.titles, found.documents, list(range(len(found.documents)))),
        "heading -> paragraph": rank(questions.headings, found.paragraphs, [places[p] for p in questions.answers]),
    }
    for task, ranks in tasks.items():
        config = {"questions": len(ranks), "answers": len(found.documents if "title" in task else found.paragraphs)}
        values = {"R@1": ranks < 1, "R@10": ranks < 10, "MRR": 1 / (1 + ranks)}
        for metric, each in values.items():
            harness.record(NAME, provider, f"{task}, {metric}", "", [float(each.mean())], x=x, config=config)


def rank(questions: Vectors, answers: Vectors, right: Sequence[int]) -> NDArray[np.int64]:
    """How many answers lie nearer to each question than the right one."""
    scores = questions @ answers.T
    own = scores[np.arange(len(questions)), right]
    return np.asarray((scores > own[:, None]).sum(1), np.int64)


if __name__ == "__main__":
    main()
