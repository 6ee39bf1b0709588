"""The frozen background that density is measured against: two small tables and the weights that combine the signals.

``density_background.bin`` holds, little-endian and in this order:

    shapes  int8 [65536]    one value per four character classes: log-odds of prose against filler, in sixteenths
    words   uint16 [65536]  hash table of words, word pairs and word triples; high byte a tag, low byte the value
                            (int8, as above); 0 is an empty slot

``density_background.json`` holds the weights of the logistic model and where the files' words came from.
Both files are written by tests/bench/build_density_background.py and never at run time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

NUM_SHAPES: Final = 1 << 16
NUM_SLOTS: Final = 1 << 16
VALUE_UNIT: Final = 16.0
"""Table values are log-odds times this."""

_BINARY_FILE: Final = Path(__file__).with_name("density_background.bin")
_WEIGHTS_FILE: Final = Path(__file__).with_name("density_background.json")
_BINARY_BYTES: Final = NUM_SHAPES + 2 * NUM_SLOTS
_MIX_1: Final = np.uint32(0x7FEB352D)
_MIX_2: Final = np.uint32(0x846CA68B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """The tables and the weights; nothing in it changes after loading.

    Attributes:
        shapes: int8 [NUM_SHAPES].
        words: uint16 [NUM_SLOTS].
        weights: weight of each signal, by name, and of the constant "bias".
        digest: of both files' bytes.
    """

    shapes: NDArray[np.int8]
    words: NDArray[np.uint16]
    weights: Mapping[str, float]
    digest: str


@cache
def load_background() -> Background:
    """Reads the two files that belong to this version; once a process.

    Raises:
        ValueError: the binary file is not as long as it must be (a broken installation).
    """
    binary, weights = _BINARY_FILE.read_bytes(), _WEIGHTS_FILE.read_bytes()
    if len(binary) != _BINARY_BYTES:
        raise ValueError(
            f"{_BINARY_FILE.name} has {len(binary)} bytes instead of {_BINARY_BYTES}: reinstall lodestream"
        )
    return Background(
        shapes=np.frombuffer(binary, np.int8, NUM_SHAPES),
        words=np.frombuffer(binary, np.dtype("<u2"), NUM_SLOTS, NUM_SHAPES),
        weights=json.loads(weights)["weights"],
        digest=hashlib.blake2b(binary + weights, digest_size=16).hexdigest(),
    )


def find_slots(hashes: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Slot and tag (1 to 255) of each hash in the table of words.

    Args:
        hashes: uint32 [N]; left as it is.
    """
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint32(15)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint32(16)
    tags = (mixed >> np.uint32(16)).astype(np.uint16) & np.uint16(0xFF)
    return mixed & np.uint32(NUM_SLOTS - 1), np.maximum(tags, np.uint16(1))


def look_up(words: NDArray[np.uint16], hashes: NDArray[np.uint32]) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
    """Whether the table knows each hash, and its value (0 where not).

    Args:
        words: uint16 [NUM_SLOTS].
        hashes: uint32 [N].

    Numerics:
        One unknown hash in 255 is taken for a known one where its slot is used.
    """
    slots, tags = find_slots(hashes)
    entries = words.take(slots)
    known = (entries >> np.uint16(8)) == tags
    values = (entries & np.uint16(0xFF)).astype(np.uint8).view(np.int8) * known
    return known, values
