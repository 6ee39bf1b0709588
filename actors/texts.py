"""Texts without a source, as the table of documents that the featurizer takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from lodestream.actors.paragraphs import TextFormat

Role = Literal["document", "query"]
"""What a text is to the model: some want a prompt before the one or the other."""


def make_documents(texts: Sequence[str], text_format: TextFormat, *, doc_ids: Sequence[str]) -> pa.Table:
    """The columns that ``Featurizer.prepare`` reads, one row a text."""
    hashes = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    return pa.table(
        {
            "doc_id": pa.array(doc_ids, pa.string()),
            "source": [""] * len(texts),
            "uri": [""] * len(texts),
            "content_hash": pa.array(hashes, pa.binary(32)),
            "source_version": [""] * len(texts),
            "text": pa.array(texts, pa.large_string()),
            "text_format": [text_format] * len(texts),
        }
    )
