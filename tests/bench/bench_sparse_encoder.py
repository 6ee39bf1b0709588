"""A whole encoder with sparse attention against itself dense, in turns, for one long segment.

    python tests/bench/bench_sparse_encoder.py [--shapes minilm modernbert] [--lengths 512 8192] [--rounds 3] [--gated]

Shapes of all-MiniLM-L6 (heads of 32, no windows) and ModernBERT-base (heads of 64, two of three layers with a window),
three layers each (``--layers``) with random weights: the layers' times repeat. "minilm, real" is the default model, its
positions repeated beyond its 512, on text of the corpus: errors of real weights, if of no real use. A sparse time holds
cells, mask, stand-ins, trial and correction rows; dense is the form that the encoder takes by itself, which is the
fastest there is. With ``--gated`` the plans are those of ``encoder.quality`` under the gate that this process measures
first, for text of density 0 and of mixed density, and there are six layers, since how many climb depends on those
before. With one thread the processor's time is taken, with more the clock's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import harness
import numpy as np
import torch
from corpora import read_corpus
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from lodestream.actors.attention import LEVELS, AttentionPolicy, Quality, make_policy
from lodestream.actors.gate_measurement import measure_gate
from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.actors.tokenize import Tokenizer
from lodestream.kernels.attention.budget import SegmentPlan, cut_segment, plan_segment
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.encoder import load_encoder
from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.packing import PackedBatch, pack
from lodestream.kernels.precision import native_precision
from lodestream.kernels.sparse_attention import SparseSegment

NAME = "sparse_encoder"
NUM_LAYERS = 3
NUM_LAYERS_GATED = 6
REAL = "minilm, real"
VOCAB = 1000
MAX_TOKENS = 16384
SHARES = (0.125, 0.25, 0.4, 0.5, 0.6)
SHAPES = {"minilm": (384, 12, 1536), "modernbert": (768, 12, 1152)}
NEVER = 1e9


def write_real(folder: Path) -> Path:
    """The default model with positions up to MAX_TOKENS: its own, again and again."""
    source, _ = find_model(DEFAULT_MODEL)
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.endswith("position_embeddings.weight"))
    table = tensors[name]
    tensors[name] = table.repeat(-(-MAX_TOKENS // len(table)), 1)[:MAX_TOKENS].contiguous()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": MAX_TOKENS}), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


def read_real_tokens() -> NDArray[np.int32]:
    """MAX_TOKENS tokens of the corpus, documents end to end."""
    tokenizer = Tokenizer.from_folder(find_model(DEFAULT_MODEL)[0])
    text = "\n\n".join(read_corpus()[1].values())[: 16 * MAX_TOKENS]
    return tokenizer.tokenize([text])[0].ids[:MAX_TOKENS].astype(np.int32)


def write_shape(folder: Path, shape: str, num_layers: int) -> Path:
    """A model folder of that shape."""
    dim, num_heads, inner = SHAPES[shape]
    common = {
        "vocab_size": VOCAB,
        "hidden_size": dim,
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "intermediate_size": inner,
        "max_position_embeddings": MAX_TOKENS,
    }
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, rows: int, columns: int, *, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * columns**-0.5
        if bias:
            tensors[f"{name}.bias"] = torch.zeros(rows)

    def add_norm(name: str, *, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = torch.ones(dim)
        if bias:
            tensors[f"{name}.bias"] = torch.zeros(dim)

    if shape == "minilm":
        config = common | {"model_type": "bert", "hidden_act": "gelu"}
        for name, rows in (("word", VOCAB), ("position", MAX_TOKENS), ("token_type", 2)):
            add(f"embeddings.{name}_embeddings", rows, dim, bias=False)
        add_norm("embeddings.LayerNorm")
        for index in range(num_layers):
            layer = f"encoder.layer.{index}"
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                add(f"{layer}.attention.{part}", dim, dim)
            add(f"{layer}.intermediate.dense", inner, dim)
            add(f"{layer}.output.dense", dim, inner)
            add_norm(f"{layer}.attention.output.LayerNorm")
            add_norm(f"{layer}.output.LayerNorm")
    else:
        config = common | {"model_type": "modernbert", "hidden_activation": "gelu", "local_attention": 128}
        add("embeddings.tok_embeddings", VOCAB, dim, bias=False)
        add_norm("embeddings.norm", bias=False)
        add_norm("final_norm", bias=False)
        for index in range(num_layers):
            layer = f"layers.{index}"
            if index:
                add_norm(f"{layer}.attn_norm", bias=False)
            add_norm(f"{layer}.mlp_norm", bias=False)
            for name, rows, columns in (
                ("attn.Wqkv", 3 * dim, dim),
                ("attn.Wo", dim, dim),
                ("mlp.Wi", 2 * inner, dim),
                ("mlp.Wo", dim, inner),
            ):
                add(f"{layer}.{name}", rows, columns, bias=False)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


def plan_share(num_tokens: int, share: float) -> SegmentPlan:
    """Every layer sparse with this share, whatever its error."""
    floors = np.zeros(cut_segment(num_tokens).num_rows, np.bool_)
    gate = GateTable(engine="open", head_dim=32, points=((1, 1.0),))
    plan = plan_segment(num_tokens, floors, shares=(share,), bound=NEVER, last_dense=False, gate=gate)
    assert plan is not None
    return plan


def plan_level(policy: AttentionPolicy, num_tokens: int, densities: tuple[float, ...]) -> SegmentPlan | None:
    """The plan of a level for paragraphs of 128 tokens whose densities go round."""
    bounds = np.append(np.arange(0, num_tokens, 128), num_tokens).astype(np.int32)
    tokens = np.stack([bounds[:-1], bounds[1:]], axis=1)
    density = np.resize(np.array(densities, np.float32), len(tokens))
    return policy.plan(density, tokens, segment_tokens=(0, num_tokens), num_around=(0, 0))


def timed(encoder: PackedEncoder, batch: PackedBatch, plan: SegmentPlan | None) -> Callable[[], float]:
    num_layers = len(encoder.description.layers)

    def run() -> float:
        attend = None if plan is None else SparseSegment(plan, num_layers=num_layers)
        taken = harness.measure_time(lambda: encoder.encode(batch, attend=attend))
        return taken.cpu_seconds if torch.get_num_threads() == 1 else taken.seconds

    return run


def measure(
    encoder: PackedEncoder,
    shape: str,
    tokens: NDArray[np.int32],
    plans: dict[str, SegmentPlan | None],
    rounds: int,
) -> None:
    num_tokens, num_layers = len(tokens), len(encoder.description.layers)
    batch = pack([tokens])
    precision = native_precision()
    threads = torch.get_num_threads()
    config = {"shape": shape, "layers": num_layers, "precision": precision, "threads": threads}
    providers = {"dense": timed(encoder, batch, None)}
    providers |= {name: timed(encoder, batch, plan) for name, plan in plans.items() if plan is not None}
    encoder.encode(batch)
    seconds = harness.interleave(rounds, providers)
    harness.record(NAME, "dense", "time", "ms", [1e3 * s for s in seconds["dense"]], x=num_tokens, config=config)
    for name, plan in plans.items():
        if plan is None:
            harness.record(NAME, name, "time / dense", "", [1.0], x=num_tokens, config=config | {"taken": "dense"})
            continue
        ratios = [sparse / dense for sparse, dense in zip(seconds[name], seconds["dense"], strict=True)]
        sparse = SparseSegment(plan, num_layers=num_layers)
        encoder.encode(batch, attend=sparse)
        extra = {
            "taken": "sparse",
            "rungs": [round(share, 3) for share in plan.ladder.shares],
            "kept": [round(share, 3) for share in sparse.kept],
            "errors": [round(mean, 3) for mean, _ in sparse.tally.summarise()],
        }
        harness.record(NAME, name, "time / dense", "", ratios, x=num_tokens, config=config | extra)
        print(f"{shape} {num_tokens} {name}: {statistics.median(ratios):.3f}, kept {extra['kept']}", flush=True)


def make_levels(head_dim: int, num_tokens: int, gate: GateTable) -> dict[str, SegmentPlan | None]:
    plans: dict[str, SegmentPlan | None] = {}
    qualities: tuple[Quality, ...] = ("high", "medium", "low")
    assert set(qualities) == set(LEVELS)
    for quality in qualities:
        policy = make_policy("auto", quality, gate, engine=gate.engine, head_dim=head_dim)
        assert policy is not None
        plans[f"gated, {quality}, density 0"] = plan_level(policy, num_tokens, (0.0,))
        plans[f"gated, {quality}, a quarter dense"] = plan_level(policy, num_tokens, (0.3, 1.0, 0.6, 0.1))
    return plans


def read_shape(shape: str, num_layers: int) -> tuple[PackedEncoder, NDArray[np.int32]]:
    """An encoder and MAX_TOKENS tokens for it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        encoder = load_encoder(write_real(target) if shape == REAL else write_shape(target, shape, num_layers))
    assert isinstance(encoder, PackedEncoder)
    random = np.random.default_rng(0)
    return encoder, read_real_tokens() if shape == REAL else random.integers(0, VOCAB, MAX_TOKENS).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=[*SHAPES, REAL])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--layers", type=int, help="of the shapes with random weights; 3, or 6 with --gated")
    parser.add_argument("--gated", action="store_true", help="the levels of encoder.quality instead of fixed shares")
    parser.add_argument("--append", action="store_true", help="keep what other runs measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.append:
        harness.start(NAME)
    for shape in arguments.shapes:
        num_layers = arguments.layers or (NUM_LAYERS_GATED if arguments.gated else NUM_LAYERS)
        encoder, tokens = read_shape(shape, num_layers)
        precision, head_dim = native_precision(), encoder.description.head_dim
        gate = None
        if arguments.gated:
            engine = f"torch-cpu {precision}"
            gate = measure_gate(
                engine=engine,
                precision=precision,
                num_heads=encoder.description.num_heads,
                head_dim=head_dim,
                max_tokens=MAX_TOKENS,
            )
            print(gate, flush=True)
        for num_tokens in arguments.lengths:
            plans: dict[str, SegmentPlan | None] = (
                {f"sparse, {share:g} kept": plan_share(num_tokens, share) for share in arguments.shares}
                if gate is None
                else make_levels(head_dim, num_tokens, gate)
            )
            measure(encoder, shape, tokens[:num_tokens], plans, arguments.rounds)


if __name__ == "__main__":
    main()
