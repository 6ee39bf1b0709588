"""What sparse attention costs in quality: the default model on real text, every layer sparse, against itself dense.

    python tests/bench/bench_sparse_quality.py [--documents 24]

Documents are cut to the model's 512 tokens, so that rows are of 64 tokens and a row's neighbourhood is its own block. A
span is a run of 24 tokens. For each kept share and ingredient: cosine of document and span means, and the error that
the correction rows measured themselves. The last rows are what a run adds: the last layer dense, the rows of dense text
exact (``kept`` in the file is the share that results).
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
from numpy.typing import NDArray

from lodestream.actors.attention import LEVELS
from lodestream.actors.density import DensityModel
from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.actors.segment import SegmentOptions, outline_documents, text_format_of
from lodestream.actors.tokenize import Tokenizer
from lodestream.kernels.attention.api import attend
from lodestream.kernels.attention.budget import cut_segment, find_exact_rows, plan_segment
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import choose_step
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.attention.layout import plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.packing import PackedBatch, pack
from lodestream.kernels.segment_attention import AttentionLayer
from lodestream.kernels.sparse_attention import ErrorTally, SparseSegment
from lodestream.kernels.weights import read_model_folder

NAME = "sparse_quality"
NEVER = 1.01


@dataclass(frozen=True)
class Wiring:
    """What a run adds to the ingredients: see ``actors.attention.QualityLevel``."""

    last_dense: bool
    exact_density: float


SHARES = (0.43, 0.61)
SPAN_TOKENS = 24
INGREDIENTS = ("dropped", "means", "slope", "slope and correction")
WIRED = {
    "last layer dense": Wiring(last_dense=True, exact_density=NEVER),
    "dense text exact": Wiring(last_dense=False, exact_density=LEVELS["high"].exact_density),
    "last layer dense, dense text exact": Wiring(last_dense=True, exact_density=LEVELS["high"].exact_density),
}
OPEN = GateTable(engine="open", head_dim=32, points=((1, 1.0),))


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
        step = choose_step(layout.num_tokens) if self.ingredient == "slope and correction" else None
        result = attend(q, k, v, mask, stand_ins, correction_step=step)
        self.kept.append(float(mask.keep_HP.float().mean()))
        if result.error is not None:
            self.tally.add(0, result.error)
        return result.out_THD.flatten(1)


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a document, with the density of each token's paragraph (0 of special tokens)."""

    batch: PackedBatch
    density_T: NDArray[np.float32]


def read_documents(texts: dict[str, str], tokenizer: Tokenizer, count: int, num_tokens: int) -> list[Excerpt]:
    """Beginnings of ``count`` documents that are long enough, spread over the corpus."""
    before, after = tokenizer.prefix_ids, tokenizer.suffix_ids
    room, model = num_tokens - len(before) - len(after), DensityModel.default()
    long = [(name, text) for name, text in texts.items() if len(text) > 8 * num_tokens]
    found = []
    for name, text in long[:: max(1, len(long) // (2 * count))]:
        text = text[: 16 * num_tokens]
        options = SegmentOptions(max_tokens=num_tokens)
        outline = outline_documents([text], [text_format_of(name)], tokenizer, options)[0]
        if len(outline.token_ids) < room:
            continue
        density = model.score([text[start:end] for start, end in outline.paragraph_chars.tolist()])
        inner = np.repeat(density, np.diff(outline.paragraph_tokens, axis=1)[:, 0])[:room]
        density_T = np.concatenate([np.zeros(len(before)), inner, np.zeros(len(after))]).astype(np.float32)
        ids = np.concatenate([before, outline.token_ids[:room], after])
        found.append(Excerpt(batch=pack([ids]), density_T=density_T))
    return found[:count]


def encode_wired(
    encoder: PackedEncoder, excerpt: Excerpt, share: float, wiring: Wiring
) -> tuple[torch.Tensor, SparseSegment]:
    """As a run encodes a segment, whatever the error."""
    num_tokens = excerpt.batch.num_tokens
    plan = plan_segment(
        num_tokens,
        find_exact_rows(excerpt.density_T, cut_segment(num_tokens), exact_density=wiring.exact_density),
        shares=(share,),
        bound=1e9,
        last_dense=wiring.last_dense,
        gate=OPEN,
    )
    assert plan is not None
    sparse = SparseSegment(plan, num_layers=len(encoder.description.layers))
    return encoder.encode(excerpt.batch, attend=sparse), sparse


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
    parser.add_argument("--wired", action="store_true", help="what a run adds only, and keep what was measured before")
    arguments = parser.parse_args()
    corpus, texts = read_corpus()
    folder, sha256 = find_model(DEFAULT_MODEL)
    encoder = PackedEncoder(read_model_folder(folder, expected_sha256=sha256), precision="fp32")
    excerpts = read_documents(texts, Tokenizer.from_folder(folder), arguments.documents, encoder.max_tokens)
    dense = [encoder.encode(excerpt.batch) for excerpt in excerpts]
    if not arguments.wired:
        harness.start(NAME)

    def note(provider: str, sparse: list[torch.Tensor], kept: list[float]) -> None:
        documents, spans = compare(dense, sparse)
        config = {"corpus": corpus, "documents": len(excerpts), "kept": round(float(np.mean(kept)), 3)}
        harness.record(NAME, provider, "mean cosine of documents", "", [float(np.mean(documents))], config=config)
        harness.record(NAME, provider, "mean cosine of spans", "", [float(np.mean(spans))], config=config)

    for share in SHARES:
        for ingredient in INGREDIENTS[-1:] if arguments.wired else INGREDIENTS:
            layers = SparseLayers(share=share, ingredient=ingredient)
            provider = f"{share:g} kept, {ingredient}"
            note(provider, [encoder.encode(excerpt.batch, attend=layers) for excerpt in excerpts], layers.kept)
            if ingredient == "slope and correction":
                mean, tail = layers.tally.summarise()[0]
                harness.record(NAME, provider, "measured error, mean", "", [mean])
                harness.record(NAME, provider, "measured error, p99", "", [tail])
        for name, wiring in WIRED.items():
            pairs = [encode_wired(encoder, excerpt, share, wiring) for excerpt in excerpts]
            kept = [part for _, sparse in pairs for part in sparse.kept]
            note(f"{share:g} kept, all and {name}", [states for states, _ in pairs], kept)


if __name__ == "__main__":
    main()
