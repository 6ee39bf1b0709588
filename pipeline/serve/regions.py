"""Paragraphs with their density, and the dense and sparse regions that they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from lodestream.actors.prepared import PreparedSpans, spans_from_table
from lodestream.pipeline.serve.models import DensityRegion, DensityResult, FeatureStatus, ParagraphDensity
from lodestream.schema import PARAGRAPH_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    """A text's or a document's paragraphs; ``doc_id`` is None for a text."""

    paragraphs: tuple[ParagraphDensity, ...]
    doc_id: str | None = None
    status: FeatureStatus = "FOUND"


def read_prepared(prepared: pa.Table) -> list[ScoredText]:
    """The paragraphs of each row of a table of ``Featurizer.prepare``."""
    return [ScoredText(paragraphs=tuple(_score_spans(spans))) for spans in spans_from_table(prepared)]


def read_stored(rows: pa.Table, *, doc_id: str, status: FeatureStatus) -> ScoredText:
    """The paragraphs among a document's feature rows."""
    kept = rows.filter(pc.equal(rows.column("granularity"), "paragraph"))
    names = ["ordinal", "kind", "char_start", "char_end", "token_count", "density"]
    paragraphs = (
        ParagraphDensity(**row | {"density": _round(row["density"])})
        for row in kept.select(names).sort_by("ordinal").to_pylist()
    )
    return ScoredText(paragraphs=tuple(paragraphs), doc_id=doc_id, status=status)


def describe_density(index: int, scored: ScoredText, threshold: float) -> DensityResult:
    """The paragraphs, their regions, and the token-weighted mean."""
    paragraphs = list(scored.paragraphs)
    num_tokens = sum(paragraph.token_count for paragraph in paragraphs)
    weighted = sum(paragraph.density * paragraph.token_count for paragraph in paragraphs)
    return DensityResult(
        index=index,
        id=scored.doc_id,
        status=scored.status,
        density=_round(weighted / num_tokens) if num_tokens else None,
        regions=find_regions(paragraphs, threshold),
        paragraphs=paragraphs,
    )


def find_regions(paragraphs: Iterable[ParagraphDensity], threshold: float) -> list[DensityRegion]:
    """Runs of paragraphs on the same side of the threshold, in the order of the text."""
    regions = []
    for dense, run in groupby(paragraphs, key=lambda paragraph: paragraph.density >= threshold):
        members = list(run)
        start, end = members[0].char_start, members[-1].char_end
        regions.append(DensityRegion(dense=dense, char_start=start, char_end=end, num_paragraphs=len(members)))
    return regions


def _score_spans(spans: PreparedSpans) -> Iterable[ParagraphDensity]:
    for ordinal, (start, end) in enumerate(spans.paragraph_chars.tolist()):
        first, last = spans.paragraph_leaves[ordinal].tolist()
        yield ParagraphDensity(
            ordinal=ordinal,
            kind=PARAGRAPH_KINDS[spans.paragraph_kinds[ordinal]],
            char_start=start,
            char_end=end,
            token_count=int(spans.leaf_tokens[last - 1, 1] - spans.leaf_tokens[first, 0]),
            density=_round(float(spans.paragraph_density[ordinal])),
        )


def _round(density: float) -> float:
    return round(float(density), 4)
