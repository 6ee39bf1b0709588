"""BERT: learned positions, norms after the sum, erf GELU."""

from __future__ import annotations

import math
from typing import Final

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription, LayerKind, NormKind

BERT_NAMES: Final = {
    "embeddings.word_embeddings": "embeddings.words",
    "embeddings.position_embeddings": "embeddings.positions",
    "embeddings.token_type_embeddings": "embeddings.types",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.{i}.attention.self.query": "layers.{i}.attention.query",
    "encoder.layer.{i}.attention.self.key": "layers.{i}.attention.key",
    "encoder.layer.{i}.attention.self.value": "layers.{i}.attention.value",
    "encoder.layer.{i}.attention.output.dense": "layers.{i}.attention.output",
    "encoder.layer.{i}.attention.output.LayerNorm": "layers.{i}.attention_norm",
    "encoder.layer.{i}.intermediate.dense": "layers.{i}.mlp.in",
    "encoder.layer.{i}.output.dense": "layers.{i}.mlp.out",
    "encoder.layer.{i}.output.LayerNorm": "layers.{i}.mlp_norm",
}


def describe_bert(config: ModelConfig, *, first_position: int = 0) -> EncoderDescription:
    """Reads BERT's config.json; ``first_position``: see EncoderDescription."""
    config.require("hidden_act", "gelu", default="gelu")
    config.require("position_embedding_type", "absolute", default="absolute")
    config.require("is_decoder", False, default=False)
    dim, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_positions = config.integer("max_position_embeddings")
    return EncoderDescription(
        vocab_size=config.integer("vocab_size"),
        dim=dim,
        inner_dim=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_key_heads=num_heads,
        head_dim=dim // num_heads,
        max_tokens=num_positions - first_position,
        norm=NormKind(kind="layer", eps=config.number("layer_norm_eps", default=1e-12), has_bias=True),
        norm_place="after",
        mlp="gelu",
        scale=1 / math.sqrt(dim // num_heads),
        layers=(LayerKind(),) * config.integer("num_hidden_layers"),
        qkv_bias=True,
        output_bias=True,
        mlp_in_bias=True,
        mlp_out_bias=True,
        first_position=first_position,
        num_positions=num_positions,
        num_types=config.integer("type_vocab_size", default=2),
        has_embedding_norm=True,
    )


BERT: Final = Architecture(
    describe=describe_bert, names=BERT_NAMES, prefixes=("bert.",), ignored=("embeddings.position_ids",)
)
