"""The encode stage against sentence-transformers with the same model, in turns, on the same texts.

    python tests/bench/bench_encoder.py --sentence-transformers /tmp/st/bin/python

How to make that environment is told in sentence_transformers_worker.py; without the option only lodestream is measured.
Texts in, vectors out, tokenising included, for both. Besides speed it records the cosine between the two.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import harness
import numpy as np
import torch
from corpora import read_corpus, read_paragraphs
from numpy.typing import NDArray
from their_process import SETTINGS, Theirs

from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.actors.tokenize import Tokenizer
from lodestream.kernels.encoder import Encoder, load_encoder
from lodestream.kernels.packing import pack, plan_batches
from lodestream.kernels.precision import native_precision
from lodestream.kernels.span_pool.reference import mean_spans

NAME = "encoder"
NUM_THREADS = os.cpu_count() or 1


class Ours:
    """Texts to vectors through the encoder alone."""

    def __init__(self, precision: Any) -> None:
        folder, sha256 = find_model(DEFAULT_MODEL)
        self.encoder: Encoder = load_encoder(folder, precision=precision, expected_sha256=sha256)
        self.tokenizer = Tokenizer.from_folder(folder)

    def encode(self, texts: list[str], *, max_tokens: int, batch_tokens: int = 2048) -> NDArray[np.float32]:
        """float32 [len(texts), D], unit length; longer texts are cut as sentence-transformers cuts them."""
        before, after = self.tokenizer.prefix_ids, self.tokenizer.suffix_ids
        room = max_tokens - len(before) - len(after)
        ids = [np.concatenate([before, tokens.ids[:room], after]) for tokens in self.tokenizer.tokenize(texts)]
        vectors = np.zeros((len(texts), self.encoder.dim), np.float32)
        for rows in plan_batches([len(i) for i in ids], batch_tokens=batch_tokens):
            batch = pack([ids[row] for row in rows.tolist()])
            bounds = batch.cu_seqlens.long()
            means = mean_spans(self.encoder.encode(batch), bounds[:-1], bounds[1:])
            vectors[rows] = torch.nn.functional.normalize(means).numpy()
        return vectors


def make_windows(texts: dict[str, str], tokenizer: Tokenizer, *, count: int, num_tokens: int) -> list[str]:
    """Texts of ``num_tokens`` tokens each (but for what cutting between words moves)."""
    windows: list[str] = []
    for text in texts.values():
        tokens = tokenizer.tokenize([text])[0]
        for start in range(0, len(tokens.ids) - num_tokens, num_tokens):
            windows.append(text[tokens.char_starts[start] : tokens.char_ends[start + num_tokens - 1]])
            if len(windows) == count:
                return windows
    return windows


def measure(
    kind: str, texts: list[str], max_tokens: int, ours: dict[str, Ours], theirs: Theirs | None, rounds: int
) -> None:
    any_tokenizer = next(iter(ours.values())).tokenizer
    num_tokens = sum(min(len(t.ids) + 2, max_tokens) for t in any_tokenizer.tokenize(texts))
    providers = {f"lodestream {name}": _timed(engine, texts, max_tokens) for name, engine in ours.items()}
    if theirs is not None:
        for setting in SETTINGS:
            providers[f"sentence-transformers {setting}"] = _their_timed(theirs, texts, setting, max_tokens)
    for provider in providers.values():
        provider()
    seconds = harness.interleave(rounds, providers)
    config = {"texts": len(texts), "tokens": num_tokens, "max_tokens": max_tokens, "threads": NUM_THREADS}
    for name, values in seconds.items():
        harness.record(NAME, name, f"{kind}: throughput", "tokens/s", [num_tokens / v for v in values], config=config)
    if theirs is None:
        return
    baseline = seconds["sentence-transformers default"]
    for name, values in seconds.items():
        ratios = [b / v for b, v in zip(baseline, values, strict=True)]
        harness.record(NAME, name, f"{kind}: speed against sentence-transformers default", "x", ratios, config=config)
    _record_cosines(kind, texts, max_tokens, ours, theirs)


def _timed(engine: Ours, texts: list[str], max_tokens: int) -> Any:
    def run() -> float:
        started = time.perf_counter()
        engine.encode(texts, max_tokens=max_tokens)
        return time.perf_counter() - started

    return run


def _their_timed(theirs: Theirs, texts: list[str], setting: str, max_tokens: int) -> Any:
    return lambda: theirs.encode(texts, setting=setting, max_tokens=max_tokens)


def _record_cosines(kind: str, texts: list[str], max_tokens: int, ours: dict[str, Ours], theirs: Theirs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "vectors.npy")
        theirs.encode(texts, setting="default", max_tokens=max_tokens, out=out)
        reference = np.load(out)
    for name, engine in ours.items():
        cosines = (engine.encode(texts, max_tokens=max_tokens) * reference).sum(axis=1)
        harness.record(NAME, f"lodestream {name}", f"{kind}: smallest cosine to fp32", "cos", [float(cosines.min())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentence-transformers", metavar="PYTHON", default="")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    name, texts = read_corpus()
    print(f"corpus: {name}")
    precisions = ["fp32", "bf16"] if native_precision() == "bf16" else ["fp32"]
    ours = {precision: Ours(precision) for precision in precisions}
    theirs = (
        Theirs(arguments.sentence_transformers, num_threads=NUM_THREADS) if arguments.sentence_transformers else None
    )
    harness.start(NAME)
    paragraphs = read_paragraphs(texts, limit=600)
    windows = make_windows(texts, ours["fp32"].tokenizer, count=48, num_tokens=510)
    measure("paragraphs", paragraphs, 256, ours, theirs, arguments.rounds)
    measure("512-token windows", windows, 512, ours, theirs, arguments.rounds)
    if theirs is not None:
        theirs.close()


if __name__ == "__main__":
    main()
