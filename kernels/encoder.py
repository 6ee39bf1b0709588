"""The encoder on a CPU: packed segments in, token states out.

Segments lie end to end without padding; linears run over all tokens of a batch at once, attention inside each segment.

T packed tokens, C model dim, H heads, D head dim, N segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import torch
import torch.nn.functional as F

from lodestream.errors import ConfigError, ModelError
from lodestream.kernels.linear import MIN_ROWS, PackedLinear
from lodestream.kernels.packing import PackedBatch
from lodestream.kernels.precision import ENGINE, STATES_VERSION, Precision, native_precision
from lodestream.kernels.segment_attention import AttentionPlan, attend_segments, plan_attention
from lodestream.kernels.weights import ModelFolder, Pooling, load_tensors, read_model_folder

ROW_STEP: Final = 128
"""Batches are filled up to a multiple of this. With as many sizes as there are batches, oneDNN compiles its kernels for
each of them and the heap falls to pieces: half a gigabyte after 240 batches.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderIdentity:
    """What an encoder's states depend on: two encoders of one identity give the same bits on the same processor."""

    weights_sha256: str
    architecture: str
    precision: Precision
    engine: str
    states_version: int


class Encoder(Protocol):
    """The seam for engines: what is behind it may be torch or another runtime, callers see this and nothing else.

    An engine holds to the following, which ``tests/kernels/test_engine_conformance.py`` checks of every one:

    1. ``encode`` returns float32 [T, C] in the order of the batch, finite, special tokens included.
    2. Batch invariance: a segment's states are the same bits whatever shares its batch, in whatever order, and for any
       number of threads. Stored vectors are reused by fingerprint, so that this is not a matter of taste.
    3. The mean over a segment is within a cosine of .9999 of the float32 computation of the same model.
    4. A segment longer than ``max_tokens`` and a token id outside the vocabulary are refused with ValueError.
    5. ``encode`` may be called from several threads, and does not change its batch.
    6. ``identity`` differs where bits may differ.

    Attributes:
        dim: C, the width of a state.
        max_tokens: most tokens of a segment, special tokens included.
        max_seq_length: most tokens that the model was made for.
        pooling: how the model makes one vector of a segment's states.
        identity: what the states depend on.
    """

    dim: int
    max_tokens: int
    max_seq_length: int
    pooling: Pooling
    identity: EncoderIdentity

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """float32 [T, C]: the states of all tokens, special tokens included."""
        ...


def load_encoder(
    model: ModelFolder | Path,
    *,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    expected_sha256: str | None = None,
) -> Encoder:
    """Loads the encoder of a model folder.

    Args:
        model: a checked folder, or one to check (see weights.read_model_folder).
        precision: "auto" takes native_precision().
        expected_sha256: the hash that the weights of a folder to check must have, hex.

    Raises:
        ModelError: the folder is not usable.
        ConfigError: bf16 is asked for on a processor without it.
    """
    chosen = native_precision() if precision == "auto" else precision
    if chosen == "bf16" and native_precision() != "bf16":
        raise ConfigError(
            "encoder.precision = bf16, but this processor has neither avx512_bf16 nor amx_bf16",
            "set encoder.precision to auto or fp32",
        )
    if isinstance(model, Path):
        model = read_model_folder(model, expected_sha256=expected_sha256)
    return BertEncoder(model, precision=chosen)


class BertEncoder:
    """BERT with learned positions, post-norm and erf GELU.

    Guarantees: the states of a segment are the same bits whatever shares its batch. Thread-safe (no state but the
    weights); torch's own threads do the work.

    Numerics: fp32 keeps all in float32. bf16 rounds the inputs of every linear and of attention to bfloat16, and keeps
    sums, LayerNorm and the residual stream in float32: cosine to fp32 above .9999.
    """

    def __init__(self, model: ModelFolder, *, precision: Precision) -> None:
        config = model.config
        activation = config.get("hidden_act", "gelu")
        positions = config.get("position_embedding_type", "absolute")
        if activation != "gelu" or positions != "absolute":
            raise ModelError(
                f"{model.path}: activation {activation!r} with positions {positions!r} is not supported",
                "take a BERT with erf GELU and absolute positions",
            )
        self.dim = model.dim
        self.max_tokens = model.max_positions
        self.max_seq_length = model.max_seq_length
        self.pooling = model.pooling
        self.identity = EncoderIdentity(
            weights_sha256=model.weights_sha256,
            architecture=model.architecture,
            precision=precision,
            engine=ENGINE,
            states_version=STATES_VERSION,
        )
        self._num_heads = int(config["num_attention_heads"])
        self._eps = float(config.get("layer_norm_eps", 1e-12))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._dtype = dtype
        tensors = load_tensors(model)
        try:
            self._words = tensors["embeddings.word_embeddings.weight"]
            # Every text is of type 0: its row is part of each position's.
            self._positions = (
                tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
            )
            self._norm = _read_norm(tensors, "embeddings.LayerNorm")
            num_layers = int(config["num_hidden_layers"])
            self._layers = [_BertLayer(tensors, f"encoder.layer.{i}", dtype) for i in range(num_layers)]
        except KeyError as error:
            raise ModelError(
                f"{model.path}: the weights have no tensor {error.args[0]}",
                "config.json and model.safetensors do not belong together: install it again",
            ) from None

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """float32 [T, C]: the states of all tokens.

        Raises:
            ValueError: a segment has more than ``max_tokens`` tokens, or a token id is outside the vocabulary.
        """
        lengths = torch.diff(batch.cu_seqlens).tolist()
        if max(lengths) > self.max_tokens:
            raise ValueError(f"a segment of {max(lengths)} tokens, but the model reads {self.max_tokens} at most")
        if int(batch.token_ids_T.min()) < 0 or int(batch.token_ids_T.max()) >= len(self._words):
            raise ValueError(f"a token id outside the model's vocabulary of {len(self._words)}")
        with torch.inference_mode():
            num_rows = max(MIN_ROWS, -(-batch.num_tokens // ROW_STEP) * ROW_STEP)
            hidden_TC = torch.zeros(num_rows, self.dim)
            torch.index_select(self._words, 0, batch.token_ids_T, out=hidden_TC[: batch.num_tokens])
            hidden_TC[: batch.num_tokens] += self._positions[batch.positions_T]
            hidden_TC = F.layer_norm(hidden_TC, (self.dim,), *self._norm, eps=self._eps)
            plan = plan_attention(lengths, num_rows=num_rows, dtype=self._dtype)
            for layer in self._layers:
                hidden_TC = self._run_layer(layer, hidden_TC, plan)
        return hidden_TC[: batch.num_tokens]

    def _run_layer(self, layer: _BertLayer, hidden_TC: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        mixed_TC = attend_segments(layer.qkv(hidden_TC.to(self._dtype)), plan, num_heads=self._num_heads)
        hidden_TC += layer.attention_output(mixed_TC)
        hidden_TC = F.layer_norm(hidden_TC, (self.dim,), *layer.attention_norm, eps=self._eps)
        inner = layer.mlp_in(hidden_TC.to(self._dtype))
        hidden_TC += layer.mlp_out(inner)
        return F.layer_norm(hidden_TC, (self.dim,), *layer.mlp_norm, eps=self._eps)


class _BertLayer:
    """The weights of one layer, query, key and value in one linear."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> None:
        attention = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        weight = torch.cat([tensors[f"{part}.weight"] for part in attention])
        bias = torch.cat([tensors[f"{part}.bias"] for part in attention])
        self.qkv = PackedLinear(weight, bias, dtype=dtype)
        self.attention_output = _read_linear(tensors, f"{name}.attention.output.dense", dtype)
        self.attention_norm = _read_norm(tensors, f"{name}.attention.output.LayerNorm")
        self.mlp_in = _read_linear(tensors, f"{name}.intermediate.dense", dtype, gelu=True)
        self.mlp_out = _read_linear(tensors, f"{name}.output.dense", dtype)
        self.mlp_norm = _read_norm(tensors, f"{name}.output.LayerNorm")


def _read_linear(
    tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype, *, gelu: bool = False
) -> PackedLinear:
    return PackedLinear(tensors[f"{name}.weight"], tensors[f"{name}.bias"], dtype=dtype, gelu=gelu)


def _read_norm(tensors: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]
