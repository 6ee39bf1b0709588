"""Nearest spans of a snapshot: an exact scan over the int8 codes, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.pipeline.states import find_rows
from lodestream.storage.search.scores import Query, find_best
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
    query = Query.of(query_D)
    best: list[tuple[float, dict[str, Any]]] = []
    batches = snapshot.scan_features(_COLUMNS, granularity=granularity, min_density=min_density)
    for batch in batches:
        if doc_prefix is not None:
            batch = batch.filter(pc.starts_with(batch.column("doc_id"), doc_prefix))
        if not headings:
            batch = batch.filter(pc.not_equal(batch.column("kind"), "heading"))
        best = _merge(best, batch, query, limit)
    return describe_hits(best, read_span_texts(snapshot, [span for _, span in best]))


def _merge(
    best: list[tuple[float, dict[str, Any]]], batch: pa.RecordBatch, query: Query, limit: int
) -> list[tuple[float, dict[str, Any]]]:
    column = batch.column("codes")
    codes = column.flatten().to_numpy().reshape(batch.num_rows, column.type.list_size)
    floor = best[-1][0] if len(best) >= limit else -np.inf
    rows, scores = find_best(codes, query, limit, floor=floor)
    found = batch.select([c for c in _COLUMNS if c != "codes"]).take(pa.array(rows)).to_pylist()
    merged = best + list(zip(scores.tolist(), found, strict=True))
    merged.sort(key=lambda item: (-item[0], item[1]["doc_id"], item[1]["ordinal"]))
    return merged[:limit]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanText:
    """The text of a span, and the title of its document."""

    title: str
    text: str


def read_span_texts(snapshot: Snapshot, spans: Sequence[Mapping[str, Any]]) -> list[SpanText]:
    """Title and text of each span ("doc_id", "char_start", "char_end") from the store; "" of a document it has not."""
    doc_ids = list(dict.fromkeys(span["doc_id"] for span in spans))
    found = find_rows(snapshot, "documents", doc_ids, ("doc_id", "title", "text")).to_pylist() if doc_ids else []
    documents = {document["doc_id"]: document for document in found}
    texts = []
    for span in spans:
        document = documents.get(span["doc_id"], {"title": "", "text": ""})
        texts.append(SpanText(title=document["title"], text=document["text"][span["char_start"] : span["char_end"]]))
    return texts


def describe_hits(best: Sequence[tuple[float, Mapping[str, Any]]], texts: Sequence[SpanText]) -> list[Hit]:
    """Hits, in the order given.

    Args:
        best: score and columns of each span.
        texts: of the same spans.
    """
    return [
        Hit(
            title=text.title,
            text=text.text,
            score=round(score, 4),
            **(dict(span) | {"density": round(float(span["density"]), 3)}),
        )
        for (score, span), text in zip(best, texts, strict=True)
    ]
