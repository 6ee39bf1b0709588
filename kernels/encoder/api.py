"""What callers know of an encoder: the protocol of engines, and how one is loaded.

T packed tokens, C model dim.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import torch

from lodestream.errors import ConfigError
from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.encoder.identity import EncoderIdentity
from lodestream.kernels.packing import PackedBatch
from lodestream.kernels.precision import native_precision
from lodestream.kernels.segment_attention import Attend
from lodestream.kernels.sentence_modules import Pooling
from lodestream.kernels.weights import ModelFolder, read_model_folder


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
        head: what is done with pooled vectors, float32 [S, C] to [S, E]; None for nothing. Means of its outputs are its
            outputs of means.
        identity: what the states depend on.
    """

    dim: int
    max_tokens: int
    max_seq_length: int
    pooling: Pooling
    head: Callable[[torch.Tensor], torch.Tensor] | None
    identity: EncoderIdentity

    def encode(self, batch: PackedBatch, *, attend: Attend | None = None) -> torch.Tensor:
        """float32 [T, C]: the states of all tokens, special tokens included. ``attend``: attention of the layers; dense
        where None."""
        ...


def load_encoder(
    model: ModelFolder | Path,
    *,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    expected_sha256: str | None = None,
    device: torch.device | str = "cpu",
) -> Encoder:
    """Loads the encoder of a model folder.

    Args:
        model: a checked folder, or one to check (see weights.read_model_folder).
        precision: "auto" takes native_precision(), on a GPU bf16.
        expected_sha256: the hash that the weights of a folder to check must have, hex.
        device: where it computes and leaves the states. On a GPU it is not held to the protocol yet: see PackedEncoder.

    Raises:
        ModelError: the folder is not usable.
        ConfigError: bf16 is asked for on a processor without it.
    """
    native = native_precision() if torch.device(device).type == "cpu" else "bf16"
    chosen = native if precision == "auto" else precision
    if chosen == "bf16" and native != "bf16":
        raise ConfigError(
            "encoder.precision = bf16, but this processor has neither avx512_bf16 nor amx_bf16",
            "set encoder.precision to auto or fp32",
        )
    if isinstance(model, Path):
        model = read_model_folder(model, expected_sha256=expected_sha256)
    return PackedEncoder(model, precision=chosen, device=device)
