"""The vocabulary of the tables: Arrow schemas, granularities, kinds and the row key.

Three tables make a store. ``features`` has one row per span (a sentence, paragraph, topic or document), ``documents``
one row per document with its text, so that another model can be built without asking the source again, and
``source_state`` one row per document with what its source said of it when it was last read. TABLES lists them.

The schema's number is stored with the tables; a store of another number is refused, never guessed at. ``lodestream
migrate`` brings an older one up to date.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final, Literal

import pyarrow as pa

SCHEMA_VERSION: Final = 2

Granularity = Literal["sentence", "paragraph", "topic", "document"]
GRANULARITIES: Final[tuple[Granularity, ...]] = ("sentence", "paragraph", "topic", "document")

ParagraphKind = Literal["text", "heading", "list", "table", "code", "quote", "markup"]
PARAGRAPH_KINDS: Final[tuple[ParagraphKind, ...]] = ("text", "heading", "list", "table", "code", "quote", "markup")

KEY_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 16
CONTENT_HASH_BYTES: Final = 32
CHECKSUM_BYTES: Final = 8

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")


@cache
def features_schema(dim: int) -> pa.Schema:
    """Schema of the table ``features`` for vectors of width ``dim``.

    ``key``            row_key(...) of the four columns that name the span
    ``doc_id``         path of the document relative to its source (prefixed by the source where there are several)
    ``granularity``    one of GRANULARITIES
    ``ordinal``        position among the document's spans of that granularity, from 0
    ``parent``         ordinal of the span one granularity up that holds this one; -1 for the document
    ``kind``           one of PARAGRAPH_KINDS for paragraphs and their sentences; "" above
    ``char_start, char_end``  the span in the document's text, half-open, in characters (code points)
    ``token_count``    tokens pooled into the vector, special tokens counted with it included; the weight upward
    ``codes, scale``   unit vector = codes x scale (int8; scale >= 0)
    ``norm``           length of the mean before it was made a unit vector
    ``density``        score in [0, 1] of the paragraph; above it the token-weighted mean
    ``fingerprint``    of the segment (sentence, paragraph) or of the children's fingerprints (topic, document)
    ``source_version`` version of the document at its source
    ``computed_at``    when the leaf vectors were computed (kept when a row is reused)
    ``run_id``         the run that wrote the row
    """
    return pa.schema(
        [
            pa.field("key", pa.binary(KEY_BYTES), nullable=False),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("granularity", pa.string(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("parent", pa.int32(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("char_start", pa.int32(), nullable=False),
            pa.field("char_end", pa.int32(), nullable=False),
            pa.field("token_count", pa.int32(), nullable=False),
            pa.field("codes", pa.list_(pa.field("item", pa.int8(), nullable=False), dim), nullable=False),
            pa.field("scale", pa.float16(), nullable=False),
            pa.field("norm", pa.float16(), nullable=False),
            pa.field("density", pa.float16(), nullable=False),
            pa.field("fingerprint", pa.binary(FINGERPRINT_BYTES), nullable=False),
            pa.field("source_version", pa.string(), nullable=False),
            pa.field("computed_at", TIMESTAMP, nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
        ]
    )


DOCUMENTS_SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(CONTENT_HASH_BYTES), nullable=False),
        pa.field("source_version", pa.string(), nullable=False),
        pa.field("feature_version", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_segments", pa.int32(), nullable=False),
        pa.field("num_topics", pa.int32(), nullable=False),
        pa.field("num_paragraphs", pa.int32(), nullable=False),
        pa.field("num_sentences", pa.int32(), nullable=False),
        pa.field("quarantine_reason", pa.string(), nullable=True),
        pa.field("updated_at", TIMESTAMP, nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
"""Schema of the table ``documents``. A row with a ``quarantine_reason`` failed in its last run: its text and its
features, if any, are those of the last version that worked, and ``content_hash`` is that of the bytes that failed."""


CHECKSUM_FIELDS: Final = (
    pa.field("text_checksum", pa.binary(CHECKSUM_BYTES), nullable=True),
    pa.field("features_checksum", pa.binary(CHECKSUM_BYTES), nullable=True),
)
"""Columns that the store itself adds to ``documents``, from the text and the feature rows that it is given; see
storage/checksum.py. Null where a migrated store has none yet."""

_SEALED_DOCUMENTS_SCHEMA: Final = pa.schema([*DOCUMENTS_SCHEMA, *CHECKSUM_FIELDS])

SOURCE_STATE_SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=True),
        pa.field("mtime_ns", pa.int64(), nullable=True),
        pa.field("ctime_ns", pa.int64(), nullable=True),
        pa.field("object_id", pa.string(), nullable=True),
        pa.field("source_version", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(CONTENT_HASH_BYTES), nullable=False),
        pa.field("first_seen_at", TIMESTAMP, nullable=False),
        pa.field("stated_at", TIMESTAMP, nullable=False),
        pa.field("quarantine_reason", pa.string(), nullable=True),
        pa.field("quarantine_attempts", pa.int32(), nullable=False),
        pa.field("first_failed_at", TIMESTAMP, nullable=True),
        pa.field("retry_at", TIMESTAMP, nullable=True),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
"""Schema of the table ``source_state``: what a source said of a document when a run last looked at it.

``size_bytes, mtime_ns, ctime_ns``  as the source states them; null where it has no such thing
``object_id``      device and inode of a file, e-tag of an object; null where there is none
``source_version`` version of the document at its source
``content_hash``   of the bytes that were read, also of bytes that failed
``first_seen_at``  when a run first saw the document
``stated_at``      time of the listing that gave these values: one soon after ``mtime_ns`` proves nothing
``quarantine_reason``  why the document cannot be used; null where it can
``quarantine_attempts, first_failed_at, retry_at``  failures in a row (0: none), the first one, when to try again
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableKind:
    """What the store must know of one of its tables. Each has a column ``doc_id``: a document's rows change together.

    ``make_schema``  its schema in a store of vectors of a width
    ``key``          the column whose values come once
    ``indexed``      the columns that are looked up
    """

    make_schema: Callable[[int], pa.Schema]
    key: str
    indexed: tuple[str, ...]


TABLES: Final[Mapping[str, TableKind]] = MappingProxyType(
    {
        "features": TableKind(make_schema=features_schema, key="key", indexed=("key", "doc_id", "fingerprint")),
        "documents": TableKind(make_schema=lambda _: _SEALED_DOCUMENTS_SCHEMA, key="doc_id", indexed=("doc_id",)),
        "source_state": TableKind(make_schema=lambda _: SOURCE_STATE_SCHEMA, key="doc_id", indexed=("doc_id",)),
    }
)
"""The tables of a store, in the order in which a chunk is committed to them. All are published together."""


def row_key(source: str, doc_id: str, granularity: str, ordinal: int) -> bytes:
    """The 16-byte key of a feature row: a hash of the four values that name its span."""
    name = "\x1f".join((source, doc_id, granularity, str(ordinal)))
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
