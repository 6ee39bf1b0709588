"""Codec of stored vectors: int8 codes with one float16 scale a row, and the length the vector had.

``kernels/span_pool`` does the same on tensors; both follow one rule, so that their bytes agree:

1. unit vector ``v = x / |x|`` in float32 (a row of zeros stays zeros),
2. ``scale`` = the smallest float16 that is >= ``max|v| / 127`` (so that no code is clipped),
3. ``codes = clip(round_half_even(v / float32(scale)), -127, 127)``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

CODEC_ID: Final = "int8-f16"
"""Name of this codec. It is part of every fingerprint: other codes need another name."""

MAX_CODE: Final = 127
BLOCK_ROWS: Final = 512  # a block of 384-wide rows stays in the second-level cache: three times as fast as one pass

Float32Array = npt.NDArray[np.float32]
Float16Array = npt.NDArray[np.float16]
Int8Array = npt.NDArray[np.int8]


def encode_rows(vectors: Float32Array) -> tuple[Int8Array, Float16Array, Float16Array]:
    """Make rows unit vectors and quantise them.

    Args:
        vectors: float32 [N, D], of any length.

    Returns:
        codes int8 [N, D], scales float16 [N], norms float16 [N]. A row of zeros has codes, scale and norm 0.

    Raises:
        ValueError: a value is NaN or infinite, or a length exceeds float16 (65,504).

    Numerics:
        Each value of the unit vector is kept within scale / 2, that is max|v| / 254 (and the rounding of the scale
        upward, at most 0.1 %); cosine to the unit vector >= .9999 for 384-wide sentence vectors.
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError(f"vectors must be float32 [N, D], got {vectors.dtype} {list(vectors.shape)}")
    num_rows, dim = vectors.shape
    codes = np.empty((num_rows, dim), dtype=np.int8)
    scales = np.empty(num_rows, dtype=np.float16)
    norms = np.empty(num_rows, dtype=np.float16)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        codes[rows], scales[rows], norms[rows] = _encode_block(vectors[rows])
    return codes, scales, norms


def decode_rows(codes: Int8Array, scales: Float16Array) -> Float32Array:
    """Turn codes int8 [N, D] and scales float16 [N] into float32 [N, D]: unit vectors within the codec's error."""
    vectors = codes.astype(np.float32)
    vectors *= scales.astype(np.float32)[:, None]
    return vectors


def _encode_block(block: Float32Array) -> tuple[Int8Array, Float16Array, Float16Array]:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        norms = lengths.astype(np.float16)
    if not np.isfinite(norms).all():
        raise ValueError("a vector holds NaN or infinity, or is longer than float16 can say")
    units = block / np.where(lengths > 0, lengths, np.float32(1))[:, None]
    # A length that float32 underflows to 0 counts as a row of zeros, whatever tiny values it holds.
    units[lengths == 0] = 0
    largest = np.abs(units).max(axis=1, initial=0)
    scales = _round_up_to_float16(largest / np.float32(MAX_CODE))
    steps = scales.astype(np.float32)
    np.divide(units, np.where(steps > 0, steps, np.float32(1))[:, None], out=units)
    codes = np.clip(np.rint(units, out=units), -MAX_CODE, MAX_CODE).astype(np.int8)
    return codes, scales, norms


def _round_up_to_float16(values: Float32Array) -> Float16Array:
    nearest = values.astype(np.float16)
    too_small = nearest.astype(np.float32) < values
    return np.where(too_small, np.nextafter(nearest, np.float16(np.inf)), nearest)
