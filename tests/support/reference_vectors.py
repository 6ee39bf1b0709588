"""Vectors that sentence-transformers made of real paragraphs, and those paragraphs, read again from Python's own texts.

The file beside this one holds a hash of each paragraph in place of its text. It is made by

    python tests/bench/make_reference_vectors.py --sentence-transformers /tmp/st/bin/python
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lodestream.actors.paragraphs import split_paragraphs

REFERENCE_FILE: Final = Path(__file__).with_suffix(".npz")

MIN_CHARS: Final = 40
MAX_CHARS: Final = 1000
_EVERY_TOPIC: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceVectors:
    """``vectors`` float32 [D], unit length, by the paragraph's hash; ``made_with`` names versions and weights."""

    vectors: Mapping[bytes, NDArray[np.float32]]
    made_with: Mapping[str, Any]


def hash_paragraph(text: str) -> bytes:
    """What a paragraph is called in the file."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def reference_documents() -> dict[str, str]:
    """Every so many pages of Python's language reference, by name."""
    return {name: topics[name] for name in sorted(topics)[::_EVERY_TOPIC]}


def reference_paragraphs() -> dict[bytes, str]:
    """The paragraphs of ``reference_documents``, headings and scraps left out, by hash."""
    return {
        hash_paragraph(text[p.char_start : p.char_end]): text[p.char_start : p.char_end]
        for text in reference_documents().values()
        for p in split_paragraphs(text, "rst")
        if p.kind != "heading" and MIN_CHARS <= p.char_end - p.char_start <= MAX_CHARS
    }


def read_reference() -> ReferenceVectors:
    """Reads the file."""
    with np.load(REFERENCE_FILE) as file:
        hashes, vectors = file["hashes"], file["vectors"].astype(np.float32)
        made_with = json.loads(str(file["made_with"]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ReferenceVectors(
        vectors={row.tobytes(): vector for row, vector in zip(hashes, vectors, strict=True)}, made_with=made_with
    )


def write_reference(vectors: Mapping[bytes, NDArray[np.float32]], made_with: Mapping[str, Any]) -> None:
    """Writes the file. float16 moves a unit vector by less than a cosine of 1e-6."""
    np.savez_compressed(
        REFERENCE_FILE,
        hashes=np.stack([np.frombuffer(name, np.uint8) for name in vectors]),
        vectors=np.stack(list(vectors.values())).astype(np.float16),
        made_with=json.dumps(dict(made_with)),
    )
