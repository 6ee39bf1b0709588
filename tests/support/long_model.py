"""A BERT with random weights that reads long texts: for tests of wiring, no reference of quality."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from lodestream.actors.models import DEFAULT_MODEL, find_model

NUM_LAYERS = 2
HEAD_DIM = 32


def write_long_bert(folder: Path, *, max_tokens: int = 4096, num_heads: int = 2, head_dim: int = HEAD_DIM) -> Path:
    """Writes a model folder with the default model's tokenizer; the same bytes every time."""
    generator = torch.Generator().manual_seed(0)
    source, _ = find_model(DEFAULT_MODEL)
    dim, inner = num_heads * head_dim, 2 * num_heads * head_dim
    config = {
        "model_type": "bert",
        "hidden_size": dim,
        "num_attention_heads": num_heads,
        "num_hidden_layers": NUM_LAYERS,
        "intermediate_size": inner,
        "max_position_embeddings": max_tokens,
        "vocab_size": json.loads((source / "config.json").read_text())["vocab_size"],
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    linears = [(f"attention.self.{part}", dim, dim) for part in ("query", "key", "value")]
    linears += [("attention.output.dense", dim, dim), ("intermediate.dense", inner, dim), ("output.dense", dim, inner)]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], dim),
        "embeddings.position_embeddings.weight": (max_tokens, dim),
        "embeddings.token_type_embeddings.weight": (2, dim),
    }
    norms = ["embeddings.LayerNorm"]
    for index in range(NUM_LAYERS):
        layer = f"encoder.layer.{index}"
        for name, rows, columns in linears:
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    for norm in norms:
        tensors |= {f"{norm}.weight": torch.ones(dim), f"{norm}.bias": torch.zeros(dim)}
    save_file(tensors, folder / "model.safetensors")
    return folder
