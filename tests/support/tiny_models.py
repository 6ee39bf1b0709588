"""Model folders of every architecture with random weights, small enough for a test: as published, and as newer
transformers write them.

Known without lodestream and without transformers, so that both may be held to the same folders. Weights are drawn by
name from numpy's RandomState, whose streams never change.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.support.tiny_configs import CONFIGS, DIM, INNER, LAYERS, VOCAB, Form

LENGTHS: Final = (1, 7, 19, 50)
"""Tokens of the segments that states are known of: odd, across a filled length, and beyond every window here."""

NAMES: Final = ("bert", "xlm-roberta", "modernbert", "nomic", "gte", "qwen3", "gemma")

Tensors = dict[str, NDArray[np.float32]]


def draw_tensors(name: str) -> Tensors:
    """The weights of an architecture, under the names of newer transformers without a prefix."""
    shapes = _SHAPES[name]()
    return {tensor: _draw(tensor, shape) for tensor, shape in shapes.items()}


def draw_token_ids(length: int) -> NDArray[np.int32]:
    """The tokens of a segment: never the padding."""
    return np.random.RandomState(length).randint(5, VOCAB, length).astype(np.int32)


def write_model(folder: Path, name: str, form: Form, *, num_shards: int = 1) -> None:
    """config.json and the weights of ``name``, as published once or as newer transformers write them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name][form], indent=1), encoding="utf-8")
    tensors = draw_tensors(name)
    tensors = _PUBLISH[name](tensors) if form == "published" else tensors
    write_tensors(folder, tensors, num_shards=num_shards)


def write_tensors(folder: Path, tensors: Tensors, *, num_shards: int = 1) -> None:
    """model.safetensors, or as many files with an index."""
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {tensor: tensors[tensor] for tensor in list(tensors)[shard::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 2:
        return (values / np.sqrt(shape[1]) * 1.5).astype(np.float32)
    return (values * 0.2 + (1 if name.endswith("weight") else 0)).astype(np.float32)


def _linear(name: str, num_out: int, num_in: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_out, num_in), **({f"{name}.bias": (num_out,)} if bias else {})}


def _norm(name: str, *, bias: bool, dim: int = DIM) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), **({f"{name}.bias": (dim,)} if bias else {})}


def _bert_shapes(num_positions: int, num_types: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, DIM),
        "embeddings.position_embeddings.weight": (num_positions, DIM),
        "embeddings.token_type_embeddings.weight": (num_types, DIM),
        **_norm("embeddings.LayerNorm", bias=True),
    }
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{layer}.{part}", DIM, DIM, bias=True)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", bias=True)
        shapes |= _linear(f"{layer}.intermediate.dense", INNER, DIM, bias=True)
        shapes |= _linear(f"{layer}.output.dense", DIM, INNER, bias=True) | _norm(
            f"{layer}.output.LayerNorm", bias=True
        )
    return shapes


def _modernbert_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embeddings.tok_embeddings.weight": (VOCAB, DIM)}
    shapes |= _norm("embeddings.norm", bias=False) | _norm("final_norm", bias=False)
    for i in range(LAYERS):
        layer = f"layers.{i}"
        shapes |= _norm(f"{layer}.attn_norm", bias=False) if i else {}
        shapes |= _linear(f"{layer}.attn.Wqkv", 3 * DIM, DIM, bias=False) | _linear(
            f"{layer}.attn.Wo", DIM, DIM, bias=False
        )
        shapes |= _norm(f"{layer}.mlp_norm", bias=False) | _linear(f"{layer}.mlp.Wi", 2 * INNER, DIM, bias=False)
        shapes |= _linear(f"{layer}.mlp.Wo", DIM, INNER, bias=False)
    return shapes


def _rotary_bert_shapes(num_types: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    """Nomic and GTE."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, DIM),
        "embeddings.token_type_embeddings.weight": (num_types, DIM),
        **_norm("embeddings.LayerNorm", bias=True),
    }
    for i in range(LAYERS):
        layer = f"layers.{i}"
        for part in "qkvo":
            shapes |= _linear(f"{layer}.self_attn.{part}_proj", DIM, DIM, bias=bias)
        for part in ("up", "gate"):
            shapes |= _linear(f"{layer}.mlp.{part}_proj", INNER, DIM, bias=False)
        shapes |= _linear(f"{layer}.mlp.down_proj", DIM, INNER, bias=bias)
        shapes |= _norm(f"{layer}.post_attention_layernorm", bias=True) | _norm(
            f"{layer}.post_mlp_layernorm", bias=True
        )
    return shapes


def _llama_shapes(num_key_heads: int, norms: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Qwen3 and Gemma: four heads of 16."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCAB, DIM), **_norm("norm", bias=False)}
    widths = {"q": 64, "k": 16 * num_key_heads, "v": 16 * num_key_heads}
    for i in range(LAYERS):
        layer = f"layers.{i}"
        for part, width in widths.items():
            shapes |= _linear(f"{layer}.self_attn.{part}_proj", width, DIM, bias=False)
        shapes |= _linear(f"{layer}.self_attn.o_proj", DIM, 64, bias=False)
        shapes |= _norm(f"{layer}.self_attn.q_norm", bias=False, dim=16) | _norm(
            f"{layer}.self_attn.k_norm", bias=False, dim=16
        )
        for part in ("gate", "up"):
            shapes |= _linear(f"{layer}.mlp.{part}_proj", INNER, DIM, bias=False)
        shapes |= _linear(f"{layer}.mlp.down_proj", DIM, INNER, bias=False)
        for norm in norms:
            shapes |= _norm(f"{layer}.{norm}", bias=False)
    return shapes


_TWO_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_SHAPES: Final = {
    "bert": lambda: _bert_shapes(96, 2),
    "xlm-roberta": lambda: _bert_shapes(98, 1),
    "modernbert": _modernbert_shapes,
    "nomic": lambda: _rotary_bert_shapes(2, bias=False),
    "gte": lambda: _rotary_bert_shapes(1, bias=True),
    "qwen3": lambda: _llama_shapes(2, _TWO_NORMS),
    "gemma": lambda: _llama_shapes(1, (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")),
}


def _prefix(tensors: Tensors, prefix: str) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _rename(tensors: Tensors, changes: Mapping[str, str]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in changes.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def _join(tensors: Tensors, parts: tuple[str, ...], whole: str) -> Tensors:
    """The rows of ``parts`` one below the other, as ``whole``."""
    joined = {}
    for name, tensor in tensors.items():
        found = next((part for part in parts if part in name), None)
        if found is None:
            joined[name] = tensor
        elif found == parts[0]:
            joined[name.replace(found, whole)] = np.concatenate([tensors[name.replace(found, part)] for part in parts])
    return joined


def _publish_bert(tensors: Tensors) -> Tensors:
    changes = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    heads = {"cls.predictions.bias": np.zeros(VOCAB, np.float32), "bert.pooler.dense.bias": np.zeros(DIM, np.float32)}
    return _prefix(_rename(tensors, changes), "bert.") | heads


def _publish_nomic(tensors: Tensors) -> Tensors:
    tensors = _join(tensors, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn.Wqkv")
    changes = {
        "embeddings.LayerNorm": "emb_ln",
        "self_attn.o_proj": "attn.out_proj",
        "up_proj": "fc11",
        "gate_proj": "fc12",
        "down_proj": "fc2",
        "post_attention_layernorm": "norm1",
        "post_mlp_layernorm": "norm2",
        "layers.": "encoder.layers.",
    }
    return _rename(tensors, changes)


def _publish_gte(tensors: Tensors) -> Tensors:
    tensors = _join(tensors, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention.qkv_proj")
    tensors = _join(tensors, ("mlp.up_proj", "mlp.gate_proj"), "mlp.up_gate_proj")
    changes = {
        "self_attn.o_proj": "attention.o_proj",
        "post_attention_layernorm": "attn_ln",
        "post_mlp_layernorm": "mlp_ln",
        "layers.": "encoder.layer.",
    }
    return _prefix(_rename(tensors, changes), "new.")


_PUBLISH: Final = {
    "bert": _publish_bert,
    "xlm-roberta": lambda tensors: _prefix(tensors, "roberta."),
    "modernbert": lambda tensors: _prefix(tensors, "model."),
    "nomic": _publish_nomic,
    "gte": _publish_gte,
    "qwen3": lambda tensors: _prefix(tensors, "model."),
    "gemma": lambda tensors: _prefix(tensors, "model."),
}
