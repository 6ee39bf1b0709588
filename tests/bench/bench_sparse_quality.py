"""What sparse attention costs in quality: the default model on real text, every layer sparse, against itself dense.

    python tests/bench/bench_sparse_quality.py [--documents 24]

Documents are cut to the model's 512 tokens, so that rows are of 64 tokens and a row's neighbourhood is its own block. A
span is a run of 24 tokens. For each kept share and ingredient: cosine of document and span means, and the error that
the correction rows measured themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import harness
import numpy as np
import torch
import torch.nn.functional as F
from corpora import read_corpus

from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.actors.tokenize import Tokenizer
from lodestream.kernels.attention.api import attend
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.packing import PackedBatch, pack
from lodestream.kernels.segment_attention import AttentionLayer
from lodestream.kernels.sparse_attention import ErrorTally
from lodestream.kernels.weights import read_model_folder

NAME = "sparse_quality"
SHARES = (0.43, 0.61)
SPAN_TOKENS = 24
INGREDIENTS = ("dropped", "means", "slope", "slope and correction")


@dataclass
class SparseLayers:
    """Attention of all layers over a batch of one segment."""

    share: float
    ingredient: str
    kept: list[float] = field(default_factory=list)
    tally: ErrorTally = field(default_factory=lambda: ErrorTally(num_layers=1))

    def __call__(self, heads_RND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
        q, k, v = layer.split(heads_RND)
        layout = plan_blocks([len(heads_RND)], query_block=64)
        cells = summarise_cells(k, v, layout, with_slope=self.ingredient.startswith("slope"))
        mask = build_mask(q, cells, layout, MaskRecipe(max_share=self.share, count_step=1, reach=0))
        stand_ins = None if self.ingredient == "dropped" else cells
        step = 16 if self.ingredient == "slope and correction" else None
        result = attend(q, k, v, mask, stand_ins, correction_step=step)
        self.kept.append(float(mask.keep_HP.float().mean()))
        if result.error is not None:
            self.tally.add(0, result.error)
        return result.out_THD.flatten(1)


def read_documents(texts: dict[str, str], tokenizer: Tokenizer, count: int, num_tokens: int) -> list[PackedBatch]:
    """Beginnings of ``count`` documents that are long enough, spread over the corpus."""
    room = num_tokens - len(tokenizer.prefix_ids) - len(tokenizer.suffix_ids)
    long = [text for text in texts.values() if len(text) > 8 * num_tokens]
    batches = []
    for text in long[:: max(1, len(long) // (2 * count))]:
        ids = tokenizer.tokenize([text[: 16 * num_tokens]])[0].ids
        if len(ids) >= room:
            batches.append(pack([np.concatenate([tokenizer.prefix_ids, ids[:room], tokenizer.suffix_ids])]))
    return batches[:count]


def compare(dense: Sequence[torch.Tensor], sparse: Sequence[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Cosines of the means of documents, and of spans."""
    documents, spans = [], []
    for one, other in zip(dense, sparse, strict=True):
        documents.append(float(F.cosine_similarity(one.mean(0), other.mean(0), dim=0)))
        usable = len(one) // SPAN_TOKENS * SPAN_TOKENS
        means = [x[:usable].view(-1, SPAN_TOKENS, x.shape[1]).mean(1) for x in (one, other)]
        spans += F.cosine_similarity(means[0], means[1], dim=1).tolist()
    return documents, spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=24)
    arguments = parser.parse_args()
    corpus, texts = read_corpus()
    folder, sha256 = find_model(DEFAULT_MODEL)
    encoder = PackedEncoder(read_model_folder(folder, expected_sha256=sha256), precision="fp32")
    batches = read_documents(texts, Tokenizer.from_folder(folder), arguments.documents, encoder.max_tokens)
    dense = [encoder.encode(batch) for batch in batches]
    harness.start(NAME)
    for share in SHARES:
        for ingredient in INGREDIENTS:
            layers = SparseLayers(share=share, ingredient=ingredient)
            sparse = [encoder.encode(batch, attend=layers) for batch in batches]
            documents, spans = compare(dense, sparse)
            config = {"corpus": corpus, "documents": len(batches), "kept": round(float(np.mean(layers.kept)), 3)}
            provider = f"{share:g} kept, {ingredient}"
            harness.record(NAME, provider, "mean cosine of documents", "", [float(np.mean(documents))], config=config)
            harness.record(NAME, provider, "mean cosine of spans", "", [float(np.mean(spans))], config=config)
            if ingredient == "slope and correction":
                mean, tail = layers.tally.summarise()[0]
                harness.record(NAME, provider, "measured error, mean", "", [mean], config=config)
                harness.record(NAME, provider, "measured error, p99", "", [tail], config=config)


if __name__ == "__main__":
    main()
