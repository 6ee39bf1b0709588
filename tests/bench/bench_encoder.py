"""The encode stage against sentence-transformers with the same model, in turns, on the same texts.

    python tests/bench/bench_encoder.py --sentence-transformers /tmp/st/bin/python

How to make that environment is told in sentence_transformers_worker.py; without the option only lodestream is measured.
Texts in, vectors out, tokenising included, for both. Besides speed it records the cosine between the two, and the roof:
what the processor's matrix units give a packed linear that runs alone, and how much of the encoder's time the model's
linears would take at that rate. Ratios are given by the clock and by processor time; on a machine that has other work
to do the second is the steadier one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

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
from lodestream.kernels.encoder import encoder as encoder_module
from lodestream.kernels.linear import MANY_ROWS, PackedLinear
from lodestream.kernels.packing import pack, plan_batches
from lodestream.kernels.precision import native_precision
from lodestream.kernels.span_pool.reference import mean_spans
from lodestream.kernels.weights import read_model_folder

NAME = "encoder"
THEM = "sentence-transformers"
NUM_THREADS = os.cpu_count() or 1
BATCH_TOKENS = 2048
PARTS = ("texts", "query")
WARM_TEXTS = 32
QUERY = "How are relative imports resolved in a package?"
QUERY_ROUNDS = 10
"""Rounds of one query for each round of many texts."""
ROOFS: dict[str, float] = {}


class Ours:
    """Texts to vectors through the encoder alone; ``linear_flops``: what a token costs in the model's linears."""

    def __init__(self, precision: Any) -> None:
        folder, sha256 = find_model(DEFAULT_MODEL)
        self.encoder: Encoder = load_encoder(folder, precision=precision, expected_sha256=sha256)
        self.tokenizer = Tokenizer.from_folder(folder)
        model = read_model_folder(folder).description
        dim, inner = model.dim, model.inner_dim
        # Query, key, value and output are 4 linears of C x C; the MLP has 2 of C x inner. 2 FLOP a multiply-add.
        self.linear_flops = len(model.layers) * 2 * (4 * dim * dim + 2 * dim * inner)

    def encode(self, texts: list[str], *, max_tokens: int, batch_tokens: int = BATCH_TOKENS) -> NDArray[np.float32]:
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
    warm, providers = (
        _providers(texts[:WARM_TEXTS], max_tokens, ours, theirs),
        _providers(texts, max_tokens, ours, theirs),
    )
    for provider in warm.values():
        provider()
    timings = harness.interleave(rounds, providers)
    config = {"texts": len(texts), "tokens": num_tokens, "max_tokens": max_tokens, "threads": NUM_THREADS}
    for name, values in timings.items():
        rates = [num_tokens / t.seconds for t in values]
        harness.record(NAME, name, f"{kind}: throughput", "tokens/s", rates, config=config)
        rates = [num_tokens / t.cpu_seconds for t in values]
        harness.record(NAME, name, f"{kind}: throughput of a core", "tokens/CPU s", rates, config=config)
    for precision, engine in ours.items():
        floor = num_tokens * engine.linear_flops / ROOFS[precision]
        shares = [floor / t.cpu_seconds for t in timings[f"lodestream {precision}"]]
        harness.record(NAME, f"lodestream {precision}", f"{kind}: share of the matrix roof", "", shares, config=config)
    if theirs is None:
        return
    baseline = timings.pop(f"{THEM} default")
    for name, values in timings.items():
        for clock, metric in (("seconds", "speed"), ("cpu_seconds", "speed by processor time")):
            ratios = [getattr(b, clock) / getattr(v, clock) for b, v in zip(baseline, values, strict=True)]
            harness.record(NAME, name, f"{kind}: {metric} against {THEM} default", "x", ratios, config=config)
    _record_cosines(kind, texts, max_tokens, ours, theirs)


def measure_query(ours: dict[str, Ours], theirs: Theirs | None, rounds: int) -> None:
    """One short text, tokenising included. What it takes among many rows is measured beside it: so it was before few
    rows were known to get the same bits."""
    providers = _providers([QUERY], 256, ours, theirs)
    for name in ours:
        providers[f"lodestream {name}, over {MANY_ROWS} rows"] = partial(
            _run_over_many_rows, providers[f"lodestream {name}"]
        )
    for provider in providers.values():
        provider()
    timings = harness.interleave(rounds, providers)
    for name, values in timings.items():
        harness.record(NAME, name, "one query: time", "ms", [1e3 * t.seconds for t in values])
        harness.record(NAME, name, "one query: processor time", "ms", [1e3 * t.cpu_seconds for t in values])


def _run_over_many_rows(run: Callable[[], harness.Timing]) -> harness.Timing:
    with mock.patch.object(encoder_module, "plan_rows", return_value=MANY_ROWS):
        return run()


def _providers(
    texts: list[str], max_tokens: int, ours: dict[str, Ours], theirs: Theirs | None
) -> dict[str, Callable[[], harness.Timing]]:
    def run_ours(engine: Ours) -> harness.Timing:
        return harness.measure_time(lambda: engine.encode(texts, max_tokens=max_tokens))

    providers = {f"lodestream {name}": partial(run_ours, engine) for name, engine in ours.items()}
    if theirs is not None:
        run_theirs = partial(theirs.encode, texts, max_tokens=max_tokens)
        providers |= {f"{THEM} {setting}": partial(run_theirs, setting=setting) for setting in SETTINGS}
    return providers


def record_roof(precision: str, dim: int) -> None:
    """FLOP/s of one core in a packed linear that runs alone: the widest of the model, without its GELU."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    linear = PackedLinear(torch.randn(4 * dim, dim), torch.zeros(4 * dim), dtype=dtype)
    x = torch.randn(BATCH_TOKENS, dim).to(dtype)
    flops = 2 * BATCH_TOKENS * 4 * dim * dim
    torch.set_num_threads(1)
    with torch.inference_mode():
        rates = [flops / harness.measure_time(lambda: linear(x)).cpu_seconds for _ in range(40)]
    torch.set_num_threads(NUM_THREADS)
    config = {"tokens": BATCH_TOKENS, "from": dim, "to": 4 * dim, "packed": linear.is_packed}
    line = harness.record(
        NAME, f"lodestream {precision}", "matrix roof of a core", "GFLOP/s", [r / 1e9 for r in rates], config=config
    )
    ROOFS[precision] = line["p80"] * 1e9


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, help="adds to the file; without it the file is made anew")
    arguments = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    name, texts = read_corpus()
    precisions = ["fp32", "bf16"] if native_precision() == "bf16" else ["fp32"]
    ours = {precision: Ours(precision) for precision in precisions}
    python = arguments.sentence_transformers
    theirs = Theirs(python, num_threads=NUM_THREADS) if python else None
    print(f"corpus: {name}; {THEM}: {theirs.versions if theirs else 'not measured'}")
    if not arguments.only:
        harness.start(NAME)
    parts = [arguments.only] if arguments.only else PARTS
    if "texts" in parts:
        for precision, engine in ours.items():
            record_roof(precision, engine.encoder.dim)
        paragraphs = read_paragraphs(texts, limit=400)
        windows = make_windows(texts, ours["fp32"].tokenizer, count=24, num_tokens=510)
        measure("paragraphs", paragraphs, 256, ours, theirs, arguments.rounds)
        measure("512-token windows", windows, 512, ours, theirs, arguments.rounds)
    if "query" in parts:
        measure_query(ours, theirs, QUERY_ROUNDS * arguments.rounds)
    if theirs is not None:
        theirs.close()


if __name__ == "__main__":
    main()
