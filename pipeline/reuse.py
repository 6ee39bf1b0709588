"""Which segments need no encoding: their leaves are in the store already, under the same fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.actors.features import LeafVectors
from lodestream.actors.prepared import PreparedSpans

MAX_ASKED: Final = 1 << 14
"""Segments looked up at once: more than a micro-batch has, unless it is one large document."""

_RANK: Final = {"paragraph": 0, "sentence": 1}


class SegmentIndex(Protocol):
    """Where stored rows are found by segment fingerprint: a snapshot, or the working versions of a transaction."""

    def find_segments(self, fingerprints: Sequence[bytes]) -> pa.Table: ...


def find_known(indexes: Sequence[SegmentIndex], all_spans: Iterable[PreparedSpans]) -> dict[bytes, LeafVectors]:
    """Leaf vectors by fingerprint of the segments of ``all_spans`` that one of ``indexes`` holds, asked in turn.

    A fingerprint fixes the tokens and where the leaves begin, but not whether a leaf is a sentence or a whole
    paragraph: another document may have the same leaf as the only sentence of a fine paragraph. Rows that do not hold
    all leaves (a store that was tampered with) are not used.
    """
    num_leaves = {
        fingerprint: end - start
        for spans in all_spans
        for (start, end), fingerprint in zip(spans.segment_leaves.tolist(), spans.fingerprints(), strict=True)
    }
    known: dict[bytes, LeafVectors] = {}
    for index in indexes:
        missing = [fingerprint for fingerprint in num_leaves if fingerprint not in known]
        for start in range(0, len(missing), MAX_ASKED):
            rows = index.find_segments(missing[start : start + MAX_ASKED])
            if rows.num_rows:
                known |= _collect(rows, num_leaves)
    return known


def _collect(rows: pa.Table, num_leaves: dict[bytes, int]) -> dict[bytes, LeafVectors]:
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
        wanted = num_leaves.get(fingerprints[start], 0)
        leaves = [start + row for row in _find_leaves(ranks[start:end])]
        # A document may hold a segment several times, one after the other: the first occurrence is enough.
        if wanted and fingerprints[start] not in known and len(leaves) % wanted == 0:
            known[fingerprints[start]] = _pick_rows(whole, leaves[:wanted])
        start = end
    return known


def _find_leaves(ranks: list[int]) -> list[int]:
    """The leaves among the rows of one segment: sentences, and paragraphs that no sentence follows. The row of a
    paragraph with sentences is made of theirs and rounded once more."""
    return [row for row, rank in enumerate(ranks) if rank == 1 or row + 1 == len(ranks) or ranks[row + 1] == 0]


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


def _pick_rows(whole: LeafVectors, rows: list[int]) -> LeafVectors:
    return LeafVectors(
        codes=whole.codes[rows],
        scales=whole.scales[rows],
        norms=whole.norms[rows],
        computed_at_us=whole.computed_at_us[rows],
    )
