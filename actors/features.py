"""From leaf vectors to the rows of the table ``features``: sentences, paragraphs, topics and the document itself.

Upper levels are combined from the *codes* of the leaves, not from the encoder's floats, so that a run that takes its
leaves from the store and one that has just encoded them write the same bytes:

    vector = normalise(sum over leaves of token_count x norm x scale x codes)

which is the mean over all pooled token states of the span (up to the codec's rounding).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.actors.prepared import PreparedSpans
from lodestream.schema import FINGERPRINT_BYTES, PARAGRAPH_KINDS, features_schema, row_key

_BLOCK_LEAVES: Final = 4096
"""Leaves that are summed at once. A border between two blocks shows in a sum's last bits: this number is fixed."""
_PIECE_ROWS: Final = 8192
"""Rows of one piece of the table: what is built on the way to it is then small, however large a document is."""
_KINDS = np.array(PARAGRAPH_KINDS, dtype=object)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafVectors:
    """Vectors of L leaves: codes int8 [L, D], scales and norms float16 [L], computed_at_us int64 [L]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    norms: NDArray[np.float16]
    computed_at_us: NDArray[np.int64]

    def rows(self, start: int, end: int) -> LeafVectors:
        """The leaves [start, end), as views."""
        return LeafVectors(
            codes=self.codes[start:end],
            scales=self.scales[start:end],
            norms=self.norms[start:end],
            computed_at_us=self.computed_at_us[start:end],
        )


def concat_leaves(parts: Sequence[LeafVectors], dim: int) -> LeafVectors:
    """The leaves of ``parts`` in order."""
    if not parts:
        return LeafVectors(
            codes=np.zeros((0, dim), np.int8),
            scales=np.zeros(0, np.float16),
            norms=np.zeros(0, np.float16),
            computed_at_us=np.zeros(0, np.int64),
        )
    return LeafVectors(
        codes=np.concatenate([p.codes for p in parts]),
        scales=np.concatenate([p.scales for p in parts]),
        norms=np.concatenate([p.norms for p in parts]),
        computed_at_us=np.concatenate([p.computed_at_us for p in parts]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentName:
    """What every row of a document repeats; ``num_chars`` is the length of its text."""

    doc_id: str
    source: str
    source_version: str
    num_chars: int


def build_feature_rows(
    documents: Iterable[tuple[DocumentName, PreparedSpans, LeafVectors]],
    *,
    dim: int,
    num_special: tuple[int, int],
    run_id: str,
) -> pa.Table:
    """All feature rows of some documents.

    Args:
        documents: identity and length of each, its spans (at least one leaf), and the leaves' vectors in their order.
        dim: D, the width of the vectors.
        num_special: special tokens that the model puts before and after a segment; they count with its first and
            last leaf.
        run_id: the run that writes the rows.

    Returns:
        A table of schema.features_schema(D): of each document itself, its topics, paragraphs, sentences.

    Cost:
        Beyond the rows themselves: one level of a document but for its sentences, and a piece of the table.
    """
    schema = features_schema(dim)
    pieces, parts, num_rows = [schema.empty_table()], [], 0
    for name, spans, leaves in documents:
        for part in _levels(name, spans, leaves, _count_tokens(spans, num_special)):
            parts.append((name, part))
            num_rows += len(part["ordinal"])
            if num_rows >= _PIECE_ROWS:
                pieces.append(_build_table(parts, schema, run_id))
                parts, num_rows = [], 0
    if parts:
        pieces.append(_build_table(parts, schema, run_id))
    return pa.concat_tables(pieces[1:] or pieces)


def _levels(
    name: DocumentName, spans: PreparedSpans, leaves: LeafVectors, weights: NDArray[np.int64]
) -> Iterator[dict[str, Any]]:
    """The rows of a document, in parts of at most _PIECE_ROWS rows of one granularity."""
    yield _document_level(name, spans, leaves, weights)
    yield from _cut_level(_topic_level(spans, leaves, weights))
    yield from _cut_level(_paragraph_level(spans, leaves, weights))
    yield from _sentence_levels(spans, leaves, weights)


def _cut_level(level: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(level["ordinal"]), _PIECE_ROWS):
        rows = slice(start, start + _PIECE_ROWS)
        yield {name: column if isinstance(column, str) else column[rows] for name, column in level.items()}


def _count_tokens(spans: PreparedSpans, num_special: tuple[int, int]) -> NDArray[np.int64]:
    counts = np.diff(spans.leaf_tokens, axis=1)[:, 0].astype(np.int64)
    counts[spans.segment_leaves[:, 0]] += num_special[0] + len(spans.prompt_ids)
    counts[spans.segment_leaves[:, 1] - 1] += num_special[1]
    return counts


def _combine(leaves: LeafVectors, weights: NDArray[np.int64], starts: NDArray[np.int32]) -> dict[str, Any]:
    """Vectors of the runs of leaves that begin at ``starts`` and reach to the next one."""
    # torch is loaded by the first document that is built, not by a run that finds nothing to build.
    import torch

    from lodestream.kernels.span_pool.api import quantise_rows

    factors = weights.astype(np.float64) * leaves.norms.astype(np.float64) * leaves.scales.astype(np.float64)
    token_count = np.add.reduceat(weights, starts)
    codes = np.empty((len(starts), leaves.codes.shape[1]), np.int8)
    scales, norms = np.empty(len(starts), np.float16), np.empty(len(starts), np.float16)
    for first, sums in _sum_runs(leaves.codes, factors, starts):
        rows = slice(first, first + len(sums))
        means = (sums / token_count[rows, None]).astype(np.float32)
        pooled = quantise_rows(torch.from_numpy(means))
        codes[rows], scales[rows], norms[rows] = pooled.codes.numpy(), pooled.scales.numpy(), pooled.norms.numpy()
    return {
        "token_count": token_count,
        "codes": codes,
        "scale": scales,
        "norm": norms,
        "computed_at": np.maximum.reduceat(leaves.computed_at_us, starts),
    }


def _sum_runs(
    codes: NDArray[np.int8], factors: NDArray[np.float64], starts: NDArray[np.int32]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Sums of factors x codes over each run, a block of leaves at a time: (first run, float64 [runs that end, D]).

    The blocks are counted from the document's start and each is added row by row: the order of the sum is that of the
    text, whatever else is in the batch.
    """
    first = 0
    open_sum = np.zeros((0, codes.shape[1]), np.float64)
    for block_start in range(0, len(codes), _BLOCK_LEAVES):
        block = slice(block_start, block_start + _BLOCK_LEAVES)
        following = int(np.searchsorted(starts, block_start + _BLOCK_LEAVES))
        inside = starts[first + len(open_sum) : following]
        cuts = np.concatenate([np.full(len(open_sum), block_start), inside]) - block_start
        sums = np.add.reduceat(codes[block] * factors[block, None], cuts, axis=0)
        sums[: len(open_sum)] += open_sum
        # The last run is open where the next block goes on with it.
        is_open = block.stop < len(codes) and (following == len(starts) or starts[following] > block.stop)
        num_ended = len(sums) - is_open
        yield first, sums[:num_ended]
        first, open_sum = first + num_ended, sums[num_ended:]


def _paragraph_fingerprints(spans: PreparedSpans) -> NDArray[np.uint8]:
    segment = np.searchsorted(spans.segment_leaves[:, 0], spans.paragraph_leaves[:, 0], side="right") - 1
    return spans.segment_fingerprints[segment]


def _hash_runs(fingerprints: NDArray[np.uint8], starts: NDArray[np.int32]) -> NDArray[np.uint8]:
    ends = [*starts[1:].tolist(), len(fingerprints)]
    digests = [
        hashlib.blake2b(fingerprints[start:end].tobytes(), digest_size=FINGERPRINT_BYTES).digest()
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, FINGERPRINT_BYTES)


def _topic_starts(spans: PreparedSpans) -> NDArray[np.int32]:
    """Index of the first paragraph of each topic."""
    return np.flatnonzero(np.diff(spans.paragraph_topics, prepend=-1)).astype(np.int32)


def _mean_density(spans: PreparedSpans, weights: NDArray[np.int64], starts: NDArray[np.int32]) -> NDArray[np.float64]:
    paragraph_tokens = np.add.reduceat(weights, spans.paragraph_leaves[:, 0])
    total = np.add.reduceat(spans.paragraph_density.astype(np.float64) * paragraph_tokens, starts)
    return np.asarray(total / np.add.reduceat(paragraph_tokens, starts), np.float64)


def _document_level(
    name: DocumentName, spans: PreparedSpans, leaves: LeafVectors, weights: NDArray[np.int64]
) -> dict[str, Any]:
    starts = np.zeros(1, np.int32)
    topics = _hash_runs(_paragraph_fingerprints(spans), _topic_starts(spans))
    return {
        "granularity": "document",
        "ordinal": np.zeros(1, np.int32),
        "parent": np.full(1, -1, np.int32),
        "kind": np.array([""], dtype=object),
        "char_start": np.zeros(1, np.int32),
        "char_end": np.full(1, name.num_chars, np.int32),
        "density": _mean_density(spans, weights, starts),
        "fingerprint": _hash_runs(topics, starts),
        **_combine(leaves, weights, starts),
    }


def _topic_level(spans: PreparedSpans, leaves: LeafVectors, weights: NDArray[np.int64]) -> dict[str, Any]:
    starts = _topic_starts(spans)
    ends = np.append(starts[1:], len(spans.paragraph_topics))
    return {
        "granularity": "topic",
        "ordinal": np.arange(len(starts), dtype=np.int32),
        "parent": np.zeros(len(starts), np.int32),
        "kind": np.full(len(starts), "", dtype=object),
        "char_start": spans.paragraph_chars[starts, 0],
        "char_end": spans.paragraph_chars[ends - 1, 1],
        "density": _mean_density(spans, weights, starts),
        "fingerprint": _hash_runs(_paragraph_fingerprints(spans), starts),
        **_combine(leaves, weights, spans.paragraph_leaves[starts, 0]),
    }


def _paragraph_level(spans: PreparedSpans, leaves: LeafVectors, weights: NDArray[np.int64]) -> dict[str, Any]:
    starts = spans.paragraph_leaves[:, 0]
    combined = _combine(leaves, weights, starts)
    # A base paragraph is a leaf: its vector is the encoder's own, not a second rounding of it.
    base = ~spans.paragraph_fine
    combined["codes"][base] = leaves.codes[starts[base]]
    combined["scale"][base] = leaves.scales[starts[base]]
    combined["norm"][base] = leaves.norms[starts[base]]
    return {
        "granularity": "paragraph",
        "ordinal": np.arange(len(starts), dtype=np.int32),
        "parent": spans.paragraph_topics,
        "kind": _KINDS[spans.paragraph_kinds],
        "char_start": spans.paragraph_chars[:, 0],
        "char_end": spans.paragraph_chars[:, 1],
        "density": spans.paragraph_density,
        "fingerprint": _paragraph_fingerprints(spans),
        **combined,
    }


def _sentence_levels(spans: PreparedSpans, leaves: LeafVectors, weights: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    paragraph = np.repeat(np.arange(len(spans.paragraph_leaves)), np.diff(spans.paragraph_leaves, axis=1)[:, 0])
    all_fine = np.flatnonzero(spans.paragraph_fine[paragraph])
    fingerprints = _paragraph_fingerprints(spans)
    for start in range(0, len(all_fine), _PIECE_ROWS):
        fine = all_fine[start : start + _PIECE_ROWS]
        parent = paragraph[fine]
        yield {
            "granularity": "sentence",
            "ordinal": np.arange(start, start + len(fine), dtype=np.int32),
            "parent": parent.astype(np.int32),
            "kind": _KINDS[spans.paragraph_kinds[parent]],
            "char_start": spans.leaf_chars[fine, 0],
            "char_end": spans.leaf_chars[fine, 1],
            "density": spans.paragraph_density[parent],
            "fingerprint": fingerprints[parent],
            "token_count": weights[fine],
            "codes": leaves.codes[fine],
            "scale": leaves.scales[fine],
            "norm": leaves.norms[fine],
            "computed_at": leaves.computed_at_us[fine],
        }


def _build_table(levels: Sequence[tuple[DocumentName, dict[str, Any]]], schema: pa.Schema, run_id: str) -> pa.Table:
    """The levels one below the other. Arrow's arrays are made once for all of them: made for every level, they would
    cost more than the encoder on a corpus of one-line documents."""
    sizes = [len(level["ordinal"]) for _, level in levels]
    keys = [
        row_key(name.source, name.doc_id, level["granularity"], ordinal)
        for name, level in levels
        for ordinal in level["ordinal"].tolist()
    ]
    fingerprints = np.concatenate([level["fingerprint"] for _, level in levels])
    values: dict[str, Any] = {
        "key": keys,
        "doc_id": _repeat([name.doc_id for name, _ in levels], sizes),
        "granularity": _repeat([level["granularity"] for _, level in levels], sizes),
        "source_version": _repeat([name.source_version for name, _ in levels], sizes),
        "run_id": _repeat([run_id] * len(levels), sizes),
        "density": np.concatenate([level["density"].astype(np.float16) for _, level in levels]),
        "fingerprint": [row.tobytes() for row in fingerprints],
    }
    arrays = []
    for field in schema:
        if field.name in values:
            arrays.append(pa.array(values[field.name], field.type))
            continue
        joined = np.concatenate([level[field.name] for _, level in levels])
        if field.name == "codes":
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(joined.reshape(-1), pa.int8()), type=field.type))
        else:
            arrays.append(pa.array(joined, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _repeat(values: Sequence[str], sizes: Sequence[int]) -> list[str]:
    return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
