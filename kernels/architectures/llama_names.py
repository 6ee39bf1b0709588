"""Names of modules that Llama's code brought, and that newer transformers give older architectures too."""

from __future__ import annotations

from typing import Final

PART_NAMES: Final = {
    "layers.{i}.self_attn.q_proj": "layers.{i}.attention.query",
    "layers.{i}.self_attn.k_proj": "layers.{i}.attention.key",
    "layers.{i}.self_attn.v_proj": "layers.{i}.attention.value",
    "layers.{i}.self_attn.o_proj": "layers.{i}.attention.output",
    "layers.{i}.mlp.gate_proj": "layers.{i}.mlp.gate",
    "layers.{i}.mlp.up_proj": "layers.{i}.mlp.up",
    "layers.{i}.mlp.down_proj": "layers.{i}.mlp.out",
}
"""Attention and MLP of a layer."""

PRE_NORM_NAMES: Final = {
    "embed_tokens": "embeddings.words",
    "layers.{i}.input_layernorm": "layers.{i}.attention_norm",
    "layers.{i}.self_attn.q_norm": "layers.{i}.attention.query_norm",
    "layers.{i}.self_attn.k_norm": "layers.{i}.attention.key_norm",
    **PART_NAMES,
    "norm": "final_norm",
}
"""Qwen3 and Gemma, but for the norm before the MLP, which each calls something else."""

POST_NORM_NAMES: Final = {
    **PART_NAMES,
    "layers.{i}.post_attention_layernorm": "layers.{i}.attention_norm",
    "layers.{i}.post_mlp_layernorm": "layers.{i}.mlp_norm",
}
"""GTE and Nomic, as newer transformers rename what was published."""
