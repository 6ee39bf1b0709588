"""Checksums of what a document is made of: its text, and its feature rows in whatever order.

They are made when a chunk is written, kept in the document's row and compared by ``lodestream verify --deep``. Files
are rewritten by compaction, so a file's checksum would vouch for whatever was read by then; these go with the content.

``computed_at`` and ``run_id`` are left out: two runs that make the same features give the same checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lodestream.schema import CHECKSUM_BYTES, CHECKSUM_FIELDS

UNCOVERED: Final = ("computed_at", "run_id")

_MODULUS: Final = 1 << (8 * CHECKSUM_BYTES)
_SEPARATOR: Final = "\x1f"
_BATCH_ROWS: Final = 4096
"""Rows hashed at once: as bytes end to end they take as much memory again."""


class FeatureSums:
    """The checksums of the features of many documents, built up batch by batch.

    A document's checksum is the sum of its rows' hashes, so the order of rows and batches does not matter, and a row
    that is lost, doubled or altered in one bit changes it (but for one chance in 2^64).

    >>> FeatureSums().of("never seen") == bytes(8)
    True
    """

    def __init__(self) -> None:
        self._sums: dict[str, int] = {}

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows with all columns of the features' schema."""
        if not rows.num_rows:  # tables that were put together hold batches without rows
            return
        for doc_id, digest in zip(rows.column("doc_id").to_pylist(), _hash_rows(rows), strict=True):
            self._sums[doc_id] = (self._sums.get(doc_id, 0) + digest) % _MODULUS

    def of(self, doc_id: str) -> bytes:
        """Return the checksum of a document; zeros for one without rows."""
        return self._sums.get(doc_id, 0).to_bytes(CHECKSUM_BYTES, "little")


def sum_features(rows: pa.Table) -> FeatureSums:
    """Return the checksums of the documents in ``rows``."""
    sums = FeatureSums()
    for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
        sums.add(batch)
    return sums


def sum_text(text: str) -> bytes:
    """Return the checksum of a document's text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=CHECKSUM_BYTES).digest()


def seal_documents(documents: pa.Table, features: FeatureSums, kept: Mapping[str, bytes | None]) -> pa.Table:
    """Return rows of ``documents`` with their checksums added.

    Args:
        documents: rows without the checksums.
        features: the sums of the documents' feature rows.
        kept: the checksums of the features of those documents whose features stay as they are stored.
    """
    doc_ids = documents["doc_id"].to_pylist()
    text_sums = [sum_text(text) for text in documents["text"].to_pylist()]
    feature_sums = [kept[doc_id] if doc_id in kept else features.of(doc_id) for doc_id in doc_ids]
    for field, values in zip(CHECKSUM_FIELDS, (text_sums, feature_sums), strict=True):
        documents = documents.append_column(field, pa.array(values, field.type))
    return documents


def _hash_rows(rows: pa.RecordBatch) -> Iterable[int]:
    names = [name for name in rows.schema.names if name not in UNCOVERED]
    texts = [rows.column(name).to_pylist() for name in names if pa.types.is_string(rows.schema.field(name).type)]
    numbers = np.concatenate(
        [_as_bytes(rows.column(name)) for name in names if not pa.types.is_string(rows.schema.field(name).type)], axis=1
    )
    for number_bytes, *words in zip(numbers, *texts, strict=True):
        digest = hashlib.blake2b(number_bytes.tobytes(), digest_size=CHECKSUM_BYTES)
        digest.update(_SEPARATOR.join(words).encode("utf-8", "surrogatepass"))
        yield int.from_bytes(digest.digest(), "little")


def _as_bytes(column: pa.Array) -> npt.NDArray[np.uint8]:
    """Return the values as little-endian bytes [N, bytes a value]."""
    values: Any = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    if pa.types.is_fixed_size_binary(values.type):
        width = values.type.byte_width
        view = np.frombuffer(values.buffers()[1] or b"", dtype=np.uint8)
        return view[values.offset * width : (values.offset + len(values)) * width].reshape(len(column), width)
    flat = values.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.astype(flat.dtype.newbyteorder("<"))).view(np.uint8).reshape(len(column), -1)
