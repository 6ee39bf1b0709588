"""The frozen background that density is measured against: character classes, two small tables and the weights.

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

# Character classes; PAD stands between two texts and in none of them.
PAD, LOWER, UPPER, DIGIT, SPACE, NEWLINE, STOP, COMMA, COLON, QUOTE, BRACKET, SLASH, DASH, MARKUP, SYMBOL, IDEOGRAPH = (
    range(16)
)
_CLASS_CHARACTERS: Final = {
    SPACE: " \t\u00a0\u2002\u2003\u2009\u202f\u3000",
    NEWLINE: "\n\r\v\f\x85\u2028\u2029",
    STOP: ".!?\u3002\uff0e\uff01\uff1f\u061f\u06d4\u0964\u2026\u00bf\u00a1",
    COMMA: ",;\u3001\uff0c\uff1b\u060c\u061b",
    COLON: ":\uff1a",
    QUOTE: "'\"()\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d\u300e\u300f\uff08\uff09"
    "\u300a\u300b\u3010\u3011",
    BRACKET: "[]{}<>",
    SLASH: "/\\@&%",
    DASH: "-_\u2010\u2011\u2012\u2013\u2014",
    MARKUP: "|+=*#`~^$",
}
# Half-open ranges of code points, later ones win; all that is not named is a letter. Frozen here, because Python's own
# tables of characters change with its version.
_CLASS_RANGES: Final = (
    (0x0000, 0x0020, SYMBOL),
    (0x0020, 0x0030, SYMBOL),
    (0x0030, 0x003A, DIGIT),
    (0x003A, 0x0041, SYMBOL),
    (0x0041, 0x005B, UPPER),
    (0x005B, 0x0061, SYMBOL),
    (0x007B, 0x00AA, SYMBOL),
    (0x00AB, 0x00B5, SYMBOL),
    (0x00B6, 0x00BA, SYMBOL),
    (0x00BB, 0x00C0, SYMBOL),
    (0x00C0, 0x00DF, UPPER),
    (0x00D7, 0x00D8, SYMBOL),
    (0x00F7, 0x00F8, SYMBOL),
    (0x0391, 0x03AA, UPPER),
    (0x0400, 0x0430, UPPER),
    (0x0531, 0x0557, UPPER),
    (0x0600, 0x060B, SYMBOL),
    (0x0660, 0x066A, DIGIT),
    (0x06F0, 0x06FA, DIGIT),
    (0x0966, 0x0970, DIGIT),
    (0x0E00, 0x0F00, IDEOGRAPH),
    (0x1000, 0x10A0, IDEOGRAPH),
    (0x1780, 0x1800, IDEOGRAPH),
    (0x2000, 0x2C00, SYMBOL),
    (0x200B, 0x2010, LOWER),
    (0x2E00, 0x3000, SYMBOL),
    (0x3000, 0x3040, SYMBOL),
    (0x3005, 0x3008, IDEOGRAPH),
    (0x3040, 0x3100, IDEOGRAPH),
    (0x3400, 0xA000, IDEOGRAPH),
    (0xD800, 0xF900, SYMBOL),
    (0xF900, 0xFB00, IDEOGRAPH),
    (0xFE00, 0xFE70, SYMBOL),
    (0xFF00, 0xFF66, SYMBOL),
    (0xFF10, 0xFF1A, DIGIT),
    (0xFF21, 0xFF3B, UPPER),
    (0xFF41, 0xFF5B, LOWER),
    (0xFFE0, 0x10000, SYMBOL),
)

NUM_CODES: Final = 1 << 16
"""Code points that CLASSES knows."""

_BINARY_FILE: Final = Path(__file__).with_name("density_background.bin")
_WEIGHTS_FILE: Final = Path(__file__).with_name("density_background.json")
_BINARY_BYTES: Final = NUM_SHAPES + 2 * NUM_SLOTS
_MIX_1: Final = np.uint32(0x7FEB352D)
_MIX_2: Final = np.uint32(0x846CA68B)


def _build_classes() -> NDArray[np.uint8]:
    classes = np.full(NUM_CODES, LOWER, np.uint8)
    for start, end, value in _CLASS_RANGES:
        classes[start:end] = value
    for value, characters in _CLASS_CHARACTERS.items():
        classes[[ord(c) for c in characters]] = value
    return classes


CLASSES: Final = _build_classes()
"""uint8 [NUM_CODES]: the class of each code point."""


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
