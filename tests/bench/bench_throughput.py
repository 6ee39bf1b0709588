"""From files to a published store: tokens a second, what each stage takes of it, and sentence-transformers beside it.

    python tests/bench/bench_throughput.py --sentence-transformers /tmp/st/bin/python

How to make that environment is told in sentence_transformers_worker.py; without the option only the stages are measured
(stages.jsonl), and throughput.jsonl stays as it is.
The corpus is a sample of the BASE rows of stream_peps_12m.parquet where LODESTREAM_STREAMS names its folder, else of
the demo's corpus.

Each round runs, in turns: a backfill into a new store (weights loaded, files read, cut, scored, encoded, pooled,
written, published), and sentence-transformers' ``encode`` alone over the texts of the same segments: once over every
segment of the corpus, and once over those that lodestream encodes, which leaves out the ones that repeat. For them no
file is read, nothing is cut and nothing is stored, so that the comparison is in their favour. Tokens a second count the
documents' tokens, each once, for all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import harness
import numpy as np
import pyarrow as pa
import torch
from corpora import read_corpus
from their_process import SETTINGS, Theirs

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.paragraphs import text_format_of
from lodestream.actors.prepared import spans_from_table
from lodestream.actors.tokenize import Tokenizer
from tests.support.workspace import Workspace

NAME = "throughput"
STAGES_NAME = "stages"
THEM = "sentence-transformers"
NUM_THREADS = os.cpu_count() or 1
STAGES = ("read", "segment", "tokenise", "density", "look up", "encode", "pool", "combine", "write", "other")


def sample_corpus(texts: dict[str, str], tokenizer: Tokenizer, max_tokens: int) -> dict[str, str]:
    """Documents spread evenly over a corpus, about ``max_tokens`` tokens of them; the longest tenth stays out."""
    names = sorted(texts, key=lambda name: len(texts[name]))[: max(1, len(texts) * 9 // 10)]
    names.sort()
    sizes = dict(zip(names, (len(t.ids) for t in tokenizer.tokenize([texts[n] for n in names])), strict=True))
    step = max(1.0, sum(sizes.values()) / max_tokens)
    picked = [names[int(place)] for place in np.arange(0, len(names), step)]
    return {name: texts[name] for name in picked}


class OurRun:
    """Backfills of one corpus, each into a new store; keeps what the last one reported, and its tokeniser's time."""

    def __init__(self, root: Path, texts: dict[str, str]) -> None:
        self._workspace = Workspace.create(root, texts)
        self._tokenise = _ClockedTokenizer()
        self.shares: list[dict[str, float]] = []
        self.overheads: list[float] = []

    def run(self) -> harness.Timing:
        """One backfill."""
        shutil.rmtree(self._workspace.store, ignore_errors=True)
        self._tokenise.seconds = 0.0
        timing = harness.measure_time(self._run)
        stages = {**self.report.counts.seconds, "tokenise": self._tokenise.seconds}
        stages["segment"] = stages.pop("segment+tokenise") - self._tokenise.seconds
        stages["other"] = timing.seconds - sum(stages.values())
        self.shares.append({stage: stages.get(stage, 0.0) / timing.seconds for stage in STAGES})
        self.overheads.append(timing.seconds / stages["encode"] - 1)
        return timing

    def _run(self) -> None:
        self.report = self._workspace.run()


class _ClockedTokenizer:
    """Adds up the seconds that tokenisers take within the stage that cuts and tokenises."""

    def __init__(self) -> None:
        self.seconds = 0.0
        plain = Tokenizer.tokenize_batch

        def tokenize_batch(tokenizer: Tokenizer, texts: list[str]) -> object:
            result = None

            def work() -> None:
                nonlocal result
                result = plain(tokenizer, texts)

            self.seconds += harness.measure_time(work).seconds
            return result

        Tokenizer.tokenize_batch = tokenize_batch  # type: ignore[method-assign,assignment]


def segment_texts(featurizer: Featurizer, texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """(the text of every segment, the text of each distinct one) as the encoder sees them."""
    every, distinct = [], {}
    for text, fingerprint in _iter_segments(featurizer, texts):
        every.append(text)
        distinct.setdefault(fingerprint, text)
    return every, list(distinct.values())


def _iter_segments(featurizer: Featurizer, texts: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    empty = [""] * len(texts)
    columns = dict.fromkeys(("source", "uri", "source_version"), empty)
    documents = pa.table(
        {
            "doc_id": list(texts),
            "text": pa.array(texts.values(), pa.large_string()),
            "text_format": [text_format_of(name) for name in texts],
            "content_hash": pa.array([bytes(32)] * len(texts), pa.binary(32)),
            **columns,
        }
    )
    for text, spans in zip(texts.values(), spans_from_table(featurizer.prepare(documents)), strict=True):
        for (first, end), fingerprint in zip(spans.segment_leaves.tolist(), spans.fingerprints(), strict=True):
            yield text[spans.leaf_chars[first, 0] : spans.leaf_chars[end - 1, 1]], fingerprint


def their_providers(
    theirs: Theirs, every: list[str], distinct: list[str], max_tokens: int
) -> dict[str, Callable[[], harness.Timing]]:
    """Their default over all segments; every setting over those that are encoded by both."""
    encode = partial(theirs.encode, max_tokens=max_tokens)
    providers = {f"{THEM} {s}, distinct segments": partial(encode, distinct, setting=s) for s in SETTINGS}
    return {f"{THEM} default, every segment": partial(encode, every, setting="default"), **providers}


def measure_stages(featurizer: Featurizer, corpus: str, texts: dict[str, str], rounds: int, folder: Path) -> None:
    """Backfills of a larger sample alone: throughput, time beyond the encode stage, and the share of each stage."""
    ours = OurRun(folder, texts)
    ours.run()
    ours.shares.clear()
    ours.overheads.clear()
    timings = [ours.run() for _ in range(rounds)]
    config = describe(ours, corpus, len(texts))
    provider = f"lodestream {featurizer.precision}"
    harness.start(STAGES_NAME)
    for unit, clock in (("tokens/s", "seconds"), ("tokens/CPU s", "cpu_seconds")):
        rates = [ours.report.counts.tokens_total / getattr(t, clock) for t in timings]
        harness.record(STAGES_NAME, provider, "files to published store", unit, rates, config=config)
    harness.record(STAGES_NAME, provider, "time beyond the encode stage", "x of it", ours.overheads, config=config)
    for stage in STAGES:
        shares = [share[stage] for share in ours.shares]
        harness.record(STAGES_NAME, provider, "share of the run", "", shares, x=stage, config=config)


def compare(
    featurizer: Featurizer, corpus: str, texts: dict[str, str], rounds: int, folder: Path, theirs: Theirs
) -> None:
    """Backfills of a sample and sentence-transformers, in turns."""
    every, distinct = segment_texts(featurizer, texts)
    max_tokens = featurizer.segment_options.max_tokens
    ours = OurRun(folder, texts)
    mine = f"lodestream {featurizer.precision}, files to store"
    ours.run()
    theirs.encode(every[:32], setting="default", max_tokens=max_tokens)
    timings = harness.interleave(rounds, {mine: ours.run, **their_providers(theirs, every, distinct, max_tokens)})
    config = describe(ours, corpus, len(texts))
    harness.start(NAME)
    for name, values in timings.items():
        rates = [ours.report.counts.tokens_total / t.seconds for t in values]
        harness.record(NAME, name, "throughput", "tokens/s", rates, config=config)
    own = timings.pop(mine)
    for name, values in timings.items():
        for clock, metric in (("seconds", "speed"), ("cpu_seconds", "speed by processor time")):
            ratios = [getattr(b, clock) / getattr(v, clock) for b, v in zip(values, own, strict=True)]
            harness.record(NAME, mine, f"{metric} against", "x", ratios, x=name, config=config)


def describe(ours: OurRun, corpus: str, num_documents: int) -> dict[str, object]:
    """What was computed, and how much of it was encoded."""
    counts = ours.report.counts
    return {
        "corpus": corpus,
        "documents": num_documents,
        "tokens": counts.tokens_total,
        "tokens_encoded": counts.tokens_encoded,
        "segments": counts.segments_total,
        "segments_encoded": counts.segments_encoded,
        "threads": NUM_THREADS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentence-transformers", metavar="PYTHON", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20_000, help="size of the sample of the comparison")
    parser.add_argument("--stage-tokens", type=int, default=100_000, help="size of the sample for the stages")
    arguments = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    featurizer = Featurizer()
    corpus, texts = read_corpus()
    sample = partial(sample_corpus, texts, featurizer.tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        large = sample(arguments.stage_tokens)
        print(f"{len(large)} documents of {corpus}")
        measure_stages(featurizer, corpus, large, arguments.rounds, Path(scratch) / "large")
        if arguments.sentence_transformers:
            theirs = Theirs(arguments.sentence_transformers, num_threads=NUM_THREADS)
            print(f"{THEM}: {theirs.versions}")
            compare(featurizer, corpus, sample(arguments.tokens), arguments.rounds, Path(scratch) / "small", theirs)
            theirs.close()


if __name__ == "__main__":
    main()
