"""What makes two encoders the same."""

from __future__ import annotations

from dataclasses import dataclass

from lodestream.kernels.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderIdentity:
    """What an encoder's states depend on: two encoders of one identity give the same bits on the same processor."""

    weights_sha256: str
    architecture: str
    precision: Precision
    engine: str
    states_version: int
