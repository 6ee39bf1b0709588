"""Finding a PEP's text by its title: dense and sparse attention and the mean over windows, side by side.

    python tests/bench/bench_sparse_retrieval.py [--documents 200]

The default model at its native 512 tokens. A query is a title; a body is the text without its header. The first 512
tokens are encoded densely and with every level of ``encoder.quality`` (every segment, whatever the gate says, no text
exact); "windows" is the mean over the first WINDOWS windows of 512 tokens: what a longer text adds. R@1: share of
titles whose own body comes first; MRR: mean of 1 / its place.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import harness
import numpy as np
import torch
import torch.nn.functional as F
from corpora import read_corpus
from numpy.typing import NDArray

from lodestream.actors.attention import LEVELS
from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.actors.tokenize import Tokenizer
from lodestream.kernels.attention.budget import cut_segment, plan_segment
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.packing import pack
from lodestream.kernels.sparse_attention import SparseSegment
from lodestream.kernels.weights import read_model_folder

NAME = "sparse_retrieval"
WINDOWS = 4
_TITLE = re.compile(r"^Title:\s*(.+)$", re.MULTILINE)

Encode = Callable[[NDArray[np.int32]], torch.Tensor]


def read_peps(limit: int) -> tuple[str, list[tuple[str, str]]]:
    """(corpus, (title, body) of PEPs long enough for all windows)."""
    corpus, texts = read_corpus()
    found = []
    for text in texts.values():
        head, _, body = text.partition("\n\n")
        title = _TITLE.search(head)
        if title and len(body) > 6 * 512 * WINDOWS:
            found.append((title.group(1).strip(), body))
    return corpus, found[:: max(1, len(found) // limit)][:limit]


class Model:
    """The default model in float32, with its tokenizer."""

    def __init__(self) -> None:
        folder, sha256 = find_model(DEFAULT_MODEL)
        self.encoder = PackedEncoder(read_model_folder(folder, expected_sha256=sha256), precision="fp32")
        self.tokenizer = Tokenizer.from_folder(folder)
        self.num_layers = len(self.encoder.description.layers)
        self.room = self.encoder.max_tokens - 2

    def wrap(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.concatenate([self.tokenizer.prefix_ids, ids, self.tokenizer.suffix_ids])

    def dense(self, ids: NDArray[np.int32]) -> torch.Tensor:
        """Mean of the states of one segment."""
        return self.encoder.encode(pack([self.wrap(ids)])).mean(0)

    def at_level(self, quality: str) -> Encode:
        """The same with the rungs, the bound and the last layer of a level; no text is exact."""
        level = LEVELS[quality]
        gate = GateTable(engine="open", head_dim=32, points=((1, 1.0),))

        def encode(ids: NDArray[np.int32]) -> torch.Tensor:
            wrapped = self.wrap(ids)
            plan = plan_segment(
                len(wrapped),
                np.zeros(cut_segment(len(wrapped)).num_rows, np.bool_),
                shares=level.shares,
                bound=level.bound,
                last_dense=level.last_dense,
                gate=gate,
            )
            if plan is None:
                return self.dense(ids)
            sparse = SparseSegment(plan, num_layers=self.num_layers)
            return self.encoder.encode(pack([wrapped]), attend=sparse).mean(0)

        return encode

    def windows(self, ids: NDArray[np.int32]) -> torch.Tensor:
        """The mean over WINDOWS windows, by tokens."""
        parts = [ids[start : start + self.room] for start in range(0, min(len(ids), WINDOWS * self.room), self.room)]
        return torch.stack([self.dense(part) * len(part) for part in parts]).sum(0)


def rank(titles: torch.Tensor, bodies: Sequence[torch.Tensor]) -> tuple[float, float]:
    """(R@1, MRR)."""
    scores = titles @ F.normalize(torch.stack(list(bodies)), dim=1).T
    places = (scores >= scores.diagonal()[:, None]).sum(1)
    return float((places == 1).float().mean()), float((1 / places).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200)
    arguments = parser.parse_args()
    corpus, peps = read_peps(arguments.documents)
    if not peps:
        print("left out: LODESTREAM_STREAMS names no folder with stream_peps_12m.parquet")
        return
    model = Model()
    titles = F.normalize(
        torch.stack([model.dense(model.tokenizer.tokenize([title])[0].ids) for title, _ in peps]), dim=1
    )
    ids = [model.tokenizer.tokenize([body[: 8 * 512 * WINDOWS]])[0].ids for _, body in peps]
    forms: dict[str, Encode] = {"dense": model.dense}
    forms |= {f"sparse, {quality}": model.at_level(quality) for quality in LEVELS}
    forms["windows"] = model.windows
    harness.start(NAME)
    dense: list[torch.Tensor] = []
    for name, encode in forms.items():
        bodies = [encode(own if name == "windows" else own[: model.room]) for own in ids]
        dense = dense or bodies
        recall, reciprocal = rank(titles, bodies)
        cosines = [float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(dense, bodies, strict=True)]
        config = {"corpus": corpus, "documents": len(peps)}
        harness.record(NAME, name, "R@1", "", [recall], config=config)
        harness.record(NAME, name, "MRR", "", [reciprocal], config=config)
        harness.record(NAME, name, "cosine to dense", "", cosines, config=config)


if __name__ == "__main__":
    main()
