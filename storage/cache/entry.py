"""What the cache holds, and how it is named.

A name is a hash of everything that the rows depend on: of a stored document, what its row in ``documents`` says of the
content (``catalog``); of a text, the text and the recipe. So it can never give rows that are not true, whatever is
published, and what a publish leaves alone keeps its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

KEY_BYTES: Final = 16
TEXT: Final = "text"
"""The class of entries that hold the features of texts; the others are the granularities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Rows of schema.features_schema(D) that go together.

    ``rows``      all of one document and granularity, or of one text; perhaps none
    ``source``    the source that the rows' keys are made with ("" for a text)
    ``num_tokens``  of a text, without special tokens; 0 for stored rows
    ``is_lossy``  whether ``codes`` and ``scale`` went through a codec that loses
    """

    rows: pa.RecordBatch
    source: str = ""
    num_tokens: int = 0
    is_lossy: bool = False


def name_rows(identity: bytes, granularity: str) -> bytes:
    """The key of a stored document's rows of one granularity; ``identity`` is that of the document's content."""
    return _hash(b"rows", identity, granularity.encode())


def name_text(feature_version: str, text_format: str, text: str) -> bytes:
    """The key of a text's features under one recipe."""
    return _hash(TEXT.encode(), feature_version.encode(), text_format.encode(), text.encode("utf-8", "surrogatepass"))


def _hash(*parts: bytes) -> bytes:
    hashed = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()
