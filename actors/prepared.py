"""What the prepare stage hands to the encode stage: documents cut into spans and segments, as an Arrow table.

One row per document. Every array of a document is a list column, so that the same table travels through this process
and through Ray's object store without a Python object per span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.schema import FINGERPRINT_BYTES

_ARRAY_TYPES: Final[dict[str, pa.DataType]] = {
    "token_ids": pa.int32(),
    "prompt_ids": pa.int32(),
    "paragraph_kinds": pa.int8(),
    "paragraph_chars": pa.int32(),
    "paragraph_topics": pa.int32(),
    "paragraph_density": pa.float32(),
    "paragraph_leaves": pa.int32(),
    "leaf_chars": pa.int32(),
    "leaf_tokens": pa.int32(),
    "segment_leaves": pa.int32(),
    "segment_tokens": pa.int32(),
    "segment_prefix_ids": pa.int32(),
    "segment_prefix_offsets": pa.int32(),
}
_PAIRS: Final = frozenset({"paragraph_chars", "paragraph_leaves", "leaf_chars", "leaf_tokens", "segment_leaves"}) | {
    "segment_tokens"
}

PREPARED_ARRAYS: Final = (*_ARRAY_TYPES, "segment_fingerprints", "paragraph_fine")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSpans:
    """One document cut into paragraphs, leaves and segments (P, L, G of them; T tokens).

    A *leaf* is a span with a vector of its own from the encoder: a sentence of a dense paragraph, or a whole paragraph
    where the text is of low density. Leaves are in the order of the text and partition its tokens.

    Attributes:
        token_ids: int32 [T], without special tokens.
        prompt_ids: int32, what the model wants before each segment, behind the special tokens; it counts as these do.
        paragraph_kinds: int8 [P], index into schema.PARAGRAPH_KINDS.
        paragraph_chars: int32 [P, 2], half-open, characters of the document's text.
        paragraph_topics: int32 [P], non-decreasing from 0.
        paragraph_density: float32 [P], in [0, 1].
        paragraph_fine: bool [P], True where the leaves are sentences.
        paragraph_leaves: int32 [P, 2], half-open.
        leaf_chars, leaf_tokens: int32 [L, 2], half-open.
        segment_leaves, segment_tokens: int32 [G, 2], half-open.
        segment_prefix_ids: int32, the heading prefixes end to end; segment_prefix_offsets: int32 [G + 1].
        segment_fingerprints: uint8 [G, FINGERPRINT_BYTES].
    """

    token_ids: NDArray[np.int32]
    prompt_ids: NDArray[np.int32]
    paragraph_kinds: NDArray[np.int8]
    paragraph_chars: NDArray[np.int32]
    paragraph_topics: NDArray[np.int32]
    paragraph_density: NDArray[np.float32]
    paragraph_fine: NDArray[np.bool_]
    paragraph_leaves: NDArray[np.int32]
    leaf_chars: NDArray[np.int32]
    leaf_tokens: NDArray[np.int32]
    segment_leaves: NDArray[np.int32]
    segment_tokens: NDArray[np.int32]
    segment_prefix_ids: NDArray[np.int32]
    segment_prefix_offsets: NDArray[np.int32]
    segment_fingerprints: NDArray[np.uint8]

    @property
    def num_segments(self) -> int:
        return len(self.segment_leaves)

    @property
    def paragraph_tokens(self) -> NDArray[np.int32]:
        """int32 [P, 2], half-open: the tokens of each paragraph."""
        leaves = self.paragraph_leaves
        return np.stack([self.leaf_tokens[leaves[:, 0], 0], self.leaf_tokens[leaves[:, 1] - 1, 1]], axis=1)

    def fingerprints(self) -> list[bytes]:
        """The segments' fingerprints as bytes, in order."""
        return [row.tobytes() for row in self.segment_fingerprints]


def spans_to_columns(spans: Sequence[PreparedSpans]) -> dict[str, pa.Array]:
    """The list columns that hold ``spans``, one row each."""
    columns = {name: _list_column([getattr(s, name) for s in spans], kind) for name, kind in _ARRAY_TYPES.items()}
    columns["paragraph_fine"] = _list_column([s.paragraph_fine.astype(np.int8) for s in spans], pa.int8())
    columns["segment_fingerprints"] = pa.array([s.segment_fingerprints.tobytes() for s in spans], pa.large_binary())
    return columns


def spans_from_table(table: pa.Table) -> Iterator[PreparedSpans]:
    """The inverse of spans_to_columns; arrays are views on the table where Arrow allows it."""
    lists = {name: _split_lists(table.column(name)) for name in (*_ARRAY_TYPES, "paragraph_fine")}
    fingerprints = table.column("segment_fingerprints").to_pylist()
    for row, raw in enumerate(fingerprints):
        values: dict[str, Any] = {name: arrays[row] for name, arrays in lists.items()}
        for name in _PAIRS:
            values[name] = values[name].reshape(-1, 2)
        values["paragraph_fine"] = values["paragraph_fine"].astype(np.bool_)
        values["segment_fingerprints"] = np.frombuffer(raw, np.uint8).reshape(-1, FINGERPRINT_BYTES)
        yield PreparedSpans(**values)


def empty_spans() -> PreparedSpans:
    """A document without a single token."""
    values: dict[str, Any] = {
        f.name: np.zeros((0, 2) if f.name in _PAIRS else 0, np.int32) for f in fields(PreparedSpans)
    }
    values["paragraph_kinds"] = np.zeros(0, np.int8)
    values["paragraph_density"] = np.zeros(0, np.float32)
    values["paragraph_fine"] = np.zeros(0, np.bool_)
    values["segment_prefix_offsets"] = np.zeros(1, np.int32)
    values["segment_fingerprints"] = np.zeros((0, FINGERPRINT_BYTES), np.uint8)
    return PreparedSpans(**values)


def _list_column(arrays: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    flat = [a.reshape(-1) for a in arrays]
    offsets = np.zeros(len(flat) + 1, np.int64)
    np.cumsum([len(a) for a in flat], out=offsets[1:])
    values = np.concatenate(flat) if flat else np.zeros(0)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))


def _split_lists(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    arrays: list[NDArray[Any]] = []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        values = chunk.values.to_numpy(zero_copy_only=False)
        arrays.extend(values[offsets[i] : offsets[i + 1]] for i in range(len(chunk)))
    return arrays
