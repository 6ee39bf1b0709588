"""Nearest spans of a snapshot: an exact scan over the int8 codes, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.storage.store import Snapshot

_COLUMNS: Final = (
    "doc_id",
    "granularity",
    "ordinal",
    "kind",
    "char_start",
    "char_end",
    "density",
    "codes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A span and the cosine of its vector and the query's; ``text`` is the span's text."""

    doc_id: str
    title: str
    granularity: str
    ordinal: int
    kind: str
    char_start: int
    char_end: int
    density: float
    score: float
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The hit as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


def search_snapshot(
    snapshot: Snapshot,
    query_D: NDArray[np.float32],
    *,
    limit: int = 10,
    granularity: str = "paragraph",
    min_density: float | None = None,
    headings: bool = False,
    doc_prefix: str | None = None,
) -> list[Hit]:
    """The ``limit`` spans whose vectors have the highest cosine with the query, best first.

    Args:
        snapshot: what to search.
        query_D: float32 unit vector.
        limit: number of hits.
        granularity: rows of which granularity to search.
        min_density: leave out rows of lower density.
        headings: include rows that are nothing but a heading.
        doc_prefix: only documents whose id begins with it: those of one of several sources begin with ``source/``.

    Cost: one pass over the codes, D bytes a row.
    """
    best: list[tuple[float, dict[str, Any]]] = []
    batches = snapshot.scan_features(_COLUMNS, granularity=granularity, min_density=min_density)
    for batch in batches:
        if doc_prefix is not None:
            batch = batch.filter(pc.starts_with(batch.column("doc_id"), doc_prefix))
        best = _merge(best, batch, query_D, limit=limit, headings=headings)
    return _describe(snapshot, best)


def _merge(
    best: list[tuple[float, dict[str, Any]]],
    batch: pa.RecordBatch,
    query_D: NDArray[np.float32],
    *,
    limit: int,
    headings: bool,
) -> list[tuple[float, dict[str, Any]]]:
    codes = batch.column("codes").flatten().to_numpy().reshape(batch.num_rows, -1).astype(np.float32)
    lengths = np.linalg.norm(codes, axis=1)
    # The codes' own length, not the scale: the cosine of what is stored, free of the scale's rounding.
    scores = (codes @ query_D) / np.where(lengths > 0, lengths, 1.0)
    if not headings:
        scores[np.array(batch.column("kind").to_pylist(), dtype=object) == "heading"] = -np.inf
    rows = np.argsort(-scores, kind="stable")[:limit]
    rows = rows[np.isfinite(scores[rows])]
    found = batch.select([c for c in _COLUMNS if c != "codes"]).take(pa.array(rows)).to_pylist()
    merged = best + [(float(scores[row]), fields) for row, fields in zip(rows.tolist(), found, strict=True)]
    merged.sort(key=lambda item: (-item[0], item[1]["doc_id"], item[1]["ordinal"]))
    return merged[:limit]


def _describe(snapshot: Snapshot, best: Iterable[tuple[float, dict[str, Any]]]) -> list[Hit]:
    documents: dict[str, dict[str, Any]] = {}
    hits = []
    for score, row in best:
        doc_id = row["doc_id"]
        if doc_id not in documents:
            documents[doc_id] = snapshot.get_document(doc_id) or {"title": "", "text": ""}
        document = documents[doc_id]
        hits.append(
            Hit(
                title=document["title"],
                score=round(score, 4),
                text=document["text"][row["char_start"] : row["char_end"]],
                **(row | {"density": round(float(row["density"]), 3)}),
            )
        )
    return hits
