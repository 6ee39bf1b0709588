"""A smaller codec for copies of stored vectors: four bits a value, in groups of 64 with a scale of their own. It loses.

Of a group, ``scale`` is the float16 nearest to CLIP x max|v| / 7: the few largest values are cut so that all others
are kept more exactly. Its error is in docs/cache.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lodestream.storage.codec import BLOCK_ROWS, Float16Array, Float32Array, Int8Array, encode_rows

GROUP: Final = 64
CLIP: Final = 0.9
MAX_CODE: Final = 7

UInt8Array = npt.NDArray[np.uint8]


def pack_rows(vectors: Float32Array) -> tuple[UInt8Array, Float16Array]:
    """Quantise unit vectors.

    Args:
        vectors: float32 [N, D], finite, values within [-1, 1].

    Returns:
        Two codes a byte uint8 [N, ceil(D / 2)], the earlier one in the lower half; scales float16 [N, ceil(D / GROUP)].
    """
    num_rows, dim = vectors.shape
    width = num_groups(dim) * GROUP
    packed = np.empty((num_rows, (dim + 1) // 2), np.uint8)
    scales = np.empty((num_rows, num_groups(dim)), np.float16)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = np.zeros((len(vectors[rows]), width), np.float32)
        block[:, :dim] = vectors[rows]
        groups = block.reshape(len(block), -1, GROUP)
        scales[rows] = (np.abs(groups).max(axis=2) * np.float32(CLIP / MAX_CODE)).astype(np.float16)
        steps = scales[rows].astype(np.float32)[:, :, None]
        codes = np.rint(groups / np.where(steps > 0, steps, np.float32(1)))
        nibbles = (np.clip(codes, -MAX_CODE, MAX_CODE) + MAX_CODE + 1).astype(np.uint8).reshape(len(block), width)
        packed[rows] = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4)[:, : packed.shape[1]]
    return packed, scales


def unpack_rows(packed: UInt8Array, scales: Float16Array, dim: int) -> Float32Array:
    """Turn what ``pack_rows`` returned into float32 [N, D]: about unit length, within the codec's error."""
    codes = np.empty((len(packed), packed.shape[1] * 2), np.float32)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    codes -= MAX_CODE + 1
    return codes[:, :dim] * np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, :dim]


def num_groups(dim: int) -> int:
    """Scales of a row."""
    return -(-dim // GROUP)


def as_int8(packed: UInt8Array, scales: Float16Array, dim: int) -> tuple[Int8Array, Float16Array]:
    """Turn what ``pack_rows`` returned into codes and scales of ``codec``: int8 [N, D], float16 [N]."""
    codes, row_scales, _ = encode_rows(unpack_rows(packed, scales, dim))
    return codes, row_scales
