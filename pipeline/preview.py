"""``lodestream plan``: what the next refresh would do, and about how long it would take. It writes nothing.

Documents that may have changed are read and compared; a sample of those that did is cut and looked up as the run would
do it, and the rest is estimated from it by size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lodestream.actors.prepared import spans_from_table
from lodestream.pipeline.changes import PlannedRead
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.executors import MICRO_BATCH_DOCUMENTS
from lodestream.pipeline.plan import RunPlan, make_plan
from lodestream.pipeline.reuse import find_known
from lodestream.pipeline.run_log import find_rate
from lodestream.pipeline.stages import (
    CHANGED,
    GONE,
    MOVED,
    NEW,
    QUARANTINED,
    SAME,
    STILL_QUARANTINED,
    Reading,
    prepare_documents,
    read_documents,
)

MAX_SAMPLE: Final = 256
"""Documents that are cut: what they have in tokens a byte stands for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The next refresh, as far as it can be told.

    ``num_by_status``  documents by what would become of them; ``doc_ids`` names some of each
    ``tokens_total, tokens_to_encode``  of the new and changed documents; estimates unless ``is_exact``
    ``minutes``        None where no run has encoded enough to tell the rate
    ``notes``          sentences worth knowing
    ``version``        the feature version that is served; None while nothing is published
    """

    seen: int
    num_by_status: dict[str, int]
    doc_ids: dict[str, list[str]]
    tokens_total: int
    tokens_to_encode: int
    is_exact: bool
    minutes: float | None
    notes: list[str]
    version: str | None

    def as_dict(self) -> dict[str, Any]:
        """The preview as JSON values."""
        return {
            "documents": {"seen": self.seen, **self.num_by_status},
            "doc_ids": self.doc_ids,
            "tokens": {"total": self.tokens_total, "to_encode": self.tokens_to_encode, "exact": self.is_exact},
            "minutes": None if self.minutes is None else round(self.minutes, 2),
            "notes": self.notes,
            "version": self.version,
        }


def preview_refresh(loaded: LoadedConfig, *, max_names: int = 10) -> Preview:
    """Looks at what the next refresh would do.

    Args:
        loaded: the configuration.
        max_names: how many documents of each kind are named.

    Raises:
        LodestreamError: what would stop the refresh before it began, the guard against mass deletion excepted.
    """
    plan = make_plan(loaded)
    reading = Reading(readers={name: source.reader() for name, source in plan.sources.items()}, vanished=plan.vanished)
    outcomes, moved_from = _look(plan, reading)
    tokens_total, tokens_to_encode, is_exact = _estimate_tokens(plan, reading, outcomes)
    rate = find_rate(plan.pointer.run.get("recent", [])) if plan.pointer else None
    names = {status: [doc_id for doc_id, _ in found][:max_names] for status, found in outcomes.items()}
    num_by_status = {status: len(outcomes[status]) for status in (NEW, CHANGED, MOVED, QUARANTINED)}
    unread = sum(s.changes.num_seen - len(s.changes.upserts) for s in plan.surveys)
    deleted = [doc_id for doc_id in plan.deleted if doc_id not in moved_from]
    return Preview(
        seen=sum(survey.changes.num_seen for survey in plan.surveys),
        num_by_status=num_by_status | {"same": unread + len(outcomes[SAME]), "deleted": len(deleted)},
        doc_ids={status: found for status, found in names.items() if found and status != SAME}
        | ({"deleted": deleted[:max_names]} if deleted else {}),
        tokens_total=tokens_total,
        tokens_to_encode=tokens_to_encode,
        is_exact=is_exact,
        minutes=None if rate is None else tokens_to_encode / rate / 60,
        notes=plan.notes(),
        version=plan.pointer.version if plan.pointer else None,
    )


Outcomes = dict[str, list[tuple[str, PlannedRead]]]


def _look(plan: RunPlan, reading: Reading) -> tuple[Outcomes, set[str]]:
    """What became of each candidate, and the documents that were moved. A new document is read only where it might
    have been moved."""
    outcomes: Outcomes = {status: [] for status in (NEW, CHANGED, MOVED, SAME, QUARANTINED, GONE)}
    moved_from: set[str] = set()
    pending: list[PlannedRead] = []
    for read in plan.reads():
        if read.known is None and not plan.vanished:
            outcomes[NEW if read.is_new else CHANGED].append((read.candidate.doc_id, read))
        else:
            pending.append(read)
    for start in range(0, len(pending), MICRO_BATCH_DOCUMENTS):
        batch = pending[start : start + MICRO_BATCH_DOCUMENTS]
        rows = read_documents(batch, reading).select(["status", "moved_from"]).to_pylist()
        for read, row in zip(batch, rows, strict=True):
            status = QUARANTINED if row["status"] == STILL_QUARANTINED else row["status"]
            outcomes[status].append((read.candidate.doc_id, read))
            if row["moved_from"] is not None:
                moved_from.add(row["moved_from"])
    return outcomes, moved_from


def _estimate_tokens(plan: RunPlan, reading: Reading, outcomes: Outcomes) -> tuple[int, int, bool]:
    """Tokens of the new and changed documents, those of them to be encoded, and whether none is an estimate."""
    reads = [read for status in (NEW, CHANGED) for _, read in outcomes[status]]
    sample = reads[:: max(1, -(-len(reads) // MAX_SAMPLE))]
    if not sample:
        return 0, 0, True
    total, to_encode = _count_tokens(plan, reading, sample)
    is_exact = len(sample) == len(reads)
    sampled_bytes = sum(read.candidate.size_bytes for read in sample)
    factor = 1.0 if is_exact else sum(read.candidate.size_bytes for read in reads) / max(1, sampled_bytes)
    return round(total * factor), round(to_encode * factor), is_exact


def _count_tokens(plan: RunPlan, reading: Reading, sample: Sequence[PlannedRead]) -> tuple[int, int]:
    prepared = prepare_documents(plan.featurizer, read_documents(sample, reading))
    all_spans = list(spans_from_table(prepared))
    known = set(find_known([plan.published], all_spans)) if plan.published is not None else set()
    total = to_encode = 0
    for spans in all_spans:
        total += len(spans.token_ids)
        for (start, end), fingerprint in zip(spans.segment_tokens.tolist(), spans.fingerprints(), strict=True):
            if fingerprint not in known:
                known.add(fingerprint)
                to_encode += end - start
    return total, to_encode
