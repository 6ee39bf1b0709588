"""Which segments need no encoding: their leaves are in the store already, under the same fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.actors.features import LeafVectors
from lodestream.actors.prepared import PreparedSpans

_RANK = {"paragraph": 0, "sentence": 1}


class SegmentIndex(Protocol):
    """Where stored rows are found by segment fingerprint: a snapshot, or the working versions of a transaction."""

    def find_segments(self, fingerprints: Sequence[bytes]) -> pa.Table: ...


def find_known(indexes: Sequence[SegmentIndex], all_spans: Iterable[PreparedSpans]) -> dict[bytes, LeafVectors]:
    """Leaf vectors by fingerprint of the segments of ``all_spans`` that one of ``indexes`` holds, asked in turn.

    A fingerprint fixes the tokens and where the leaves begin, hence the rows that a document with this segment has:
    for each paragraph its own row and, where it is fine, a row per sentence. Rows that do not show that pattern (a
    store that was tampered with) are not used.
    """
    patterns = _row_patterns(all_spans)
    known: dict[bytes, LeafVectors] = {}
    for index in indexes:
        missing = [fingerprint for fingerprint in patterns if fingerprint not in known]
        rows = index.find_segments(missing) if missing else None
        if rows is not None and rows.num_rows:
            known |= _collect(rows, patterns)
    return known


def _row_patterns(all_spans: Iterable[PreparedSpans]) -> dict[bytes, list[int]]:
    """The rank of each row (0 paragraph, 1 sentence) that a segment's document has, by fingerprint."""
    patterns: dict[bytes, list[int]] = {}
    for spans in all_spans:
        first_leaves = spans.paragraph_leaves[:, 0]
        for (leaf_start, leaf_end), fingerprint in zip(
            spans.segment_leaves.tolist(), spans.fingerprints(), strict=True
        ):
            if fingerprint in patterns:
                continue
            start, end = np.searchsorted(first_leaves, [leaf_start, leaf_end])
            pattern = []
            for paragraph in range(start, end):
                pattern.append(0)
                if spans.paragraph_fine[paragraph]:
                    leaves = spans.paragraph_leaves[paragraph]
                    pattern += [1] * int(leaves[1] - leaves[0])
            patterns[fingerprint] = pattern
    return patterns


def _collect(rows: pa.Table, patterns: dict[bytes, list[int]]) -> dict[bytes, LeafVectors]:
    order = _order_rows(rows)
    rows = rows.take(pa.array(order))
    fingerprints = rows.column("fingerprint").to_pylist()
    doc_ids = rows.column("doc_id").to_pylist()
    ranks = [_RANK[g] for g in rows.column("granularity").to_pylist()]
    whole = _leaf_vectors(rows)
    known: dict[bytes, LeafVectors] = {}
    start = 0
    for end in range(1, len(fingerprints) + 1):
        if end < len(fingerprints) and (fingerprints[end], doc_ids[end]) == (fingerprints[start], doc_ids[start]):
            continue
        pattern = patterns.get(fingerprints[start])
        # A document may hold a segment several times, one after the other: the first occurrence is enough.
        if pattern is not None and fingerprints[start] not in known and ranks[start:end][: len(pattern)] == pattern:
            known[fingerprints[start]] = _pick_leaves(whole, pattern, start)
        start = end
    return known


def _order_rows(rows: pa.Table) -> NDArray[np.int64]:
    """Rows by fingerprint, document, place in the text; a paragraph before its sentences."""
    ranks = np.array([_RANK[g] for g in rows.column("granularity").to_pylist()])
    places = rows.column("char_start").to_numpy()
    names = list(zip(rows.column("fingerprint").to_pylist(), rows.column("doc_id").to_pylist(), strict=True))
    order = sorted(range(rows.num_rows), key=lambda row: (names[row], places[row], ranks[row]))
    return np.array(order, np.int64)


def _leaf_vectors(rows: pa.Table) -> LeafVectors:
    codes = rows.column("codes").combine_chunks()
    if isinstance(codes, pa.ChunkedArray):
        codes = pa.concat_arrays(codes.chunks)
    return LeafVectors(
        codes=codes.flatten().to_numpy().reshape(rows.num_rows, codes.type.list_size),
        scales=rows.column("scale").to_numpy(),
        norms=rows.column("norm").to_numpy(),
        computed_at_us=rows.column("computed_at").cast(pa.int64()).to_numpy(),
    )


def _pick_leaves(whole: LeafVectors, pattern: list[int], start: int) -> LeafVectors:
    """The leaves among the rows of one segment: sentences, and paragraphs that no sentence follows."""
    picked = [
        start + row for row, rank in enumerate(pattern) if rank == 1 or row + 1 == len(pattern) or pattern[row + 1] == 0
    ]
    return LeafVectors(
        codes=whole.codes[picked],
        scales=whole.scales[picked],
        norms=whole.norms[picked],
        computed_at_us=whole.computed_at_us[picked],
    )
