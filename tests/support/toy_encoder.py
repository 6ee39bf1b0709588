"""An encoder that costs nothing and forgets nothing: every token, its neighbours and its segment show in its states.

For tests that need thousands of runs. It holds to the protocol of ``kernels.encoder.Encoder``: deterministic, the same
bits whatever shares the batch, other bits for another text or another precision class.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import torch

from lodestream.kernels.encoder import EncoderIdentity
from lodestream.kernels.packing import PackedBatch
from lodestream.kernels.precision import Precision
from lodestream.kernels.weights import ModelFolder

_ROWS = 1024


class ToyEncoder:
    """States are sums of fixed random rows: the token's own, half of its neighbour's, a tenth of the segment's mean."""

    def __init__(self, model: ModelFolder, *, precision: Precision) -> None:
        self.dim = model.dim
        self.max_tokens = model.max_positions
        self.max_seq_length = model.max_seq_length
        self.pooling = model.pooling
        self.head = None
        self.identity = EncoderIdentity(
            weights_sha256="toy", architecture="toy", precision=precision, engine="toy", states_version=1
        )
        self._rows = _draw_rows(self.dim, seed=len(precision) + (precision == "bf16"))

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """float32 [T, C]."""
        bounds = batch.cu_seqlens.tolist()
        parts = []
        for start, end in itertools.pairwise(bounds):
            own = self._rows[batch.token_ids_T[start:end] % _ROWS]
            parts.append(own + 0.5 * own.roll(1, 0) + 0.1 * own.mean(0))
        return torch.cat(parts).float()


class LookupEncoder(ToyEncoder):
    """Each token's own row and nothing else: for millions of tokens that are to be counted rather than told apart."""

    def __init__(self, model: ModelFolder, *, precision: Precision) -> None:
        super().__init__(model, precision=precision)
        self.identity = replace(self.identity, weights_sha256="lookup")
        self._rows = self._rows.float()

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """float32 [T, C]."""
        return self._rows[batch.token_ids_T % _ROWS]


@cache
def _draw_rows(dim: int, *, seed: int) -> torch.Tensor:
    return torch.randn(_ROWS, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def load_toy_encoder(model: ModelFolder, *, precision: Precision = "fp32") -> ToyEncoder:
    """In the place of ``kernels.encoder.load_encoder``."""
    return ToyEncoder(model, precision=precision)


def load_lookup_encoder(model: ModelFolder, *, precision: Precision = "fp32") -> LookupEncoder:
    """In the place of ``kernels.encoder.load_encoder``."""
    return LookupEncoder(model, precision=precision)
