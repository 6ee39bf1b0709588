"""What a run did, for people and for machines."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from lodestream.actors.options import EncodeCounts
from lodestream.pipeline.attention_report import AttentionSetting, report_attention
from lodestream.pipeline.changes import Survey
from lodestream.pipeline.stages import CHANGED, MOVED, NEW, QUARANTINED, SAME, STILL_QUARANTINED, StageOutput

MAX_KEPT_WARNINGS: Final = 20
"""How many of a run's warnings are published with it; ``--json`` prints them all."""


def name_run() -> str:
    """A run's name: it begins with the time, and no other run has it."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def read_run_start(run_id: str) -> datetime | None:
    """When a run began, in whole seconds; None for names that name_run did not make."""
    try:
        return datetime.strptime(run_id.split("-", maxsplit=1)[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(slots=True, kw_only=True)
class RunReport:
    """What a run did; ``as_dict`` is the object that ``--json`` prints.

    ``seen``         documents that the sources looked at
    ``unchanged``    those of them that were not even read
    ``num_by_status``  documents that were read, by what became of them
    ``in_quarantine``  doc_ids in quarantine at the end, whichever run put them there
    ``deleted``      documents whose name is gone; ``moved_from`` are those of them that live on under another
    ``attention``    how the run was asked to attend
    ``lag_s``        from the sources' watermark to the end of the run: how old what is published is at most
    """

    run_id: str
    kind: Literal["backfill", "refresh"]
    executor: str = "local"
    executor_reason: str = "nothing to read"
    backend: str = ""
    seconds: float = 0.0
    seen: int = 0
    unchanged: int = 0
    num_by_status: dict[str, int] = field(default_factory=dict)
    deleted: int = 0
    resumed: int = 0
    counts: EncodeCounts = field(default_factory=EncodeCounts)
    attention: AttentionSetting = field(default_factory=AttentionSetting)
    snapshot_before: int | None = None
    snapshot_after: int | None = None
    warnings: list[str] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    in_quarantine: set[str] = field(default_factory=set)
    moved_from: set[str] = field(default_factory=set)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    lag_s: float | None = None
    upkeep: dict[str, Any] | None = None

    @property
    def num_quarantined(self) -> int:
        return len(self.in_quarantine)

    def add(self, output: StageOutput) -> None:
        """Counts what became of a chunk's documents."""
        self.counts.add(output.counts)
        for status, number in output.count().items():
            self.num_by_status[status] = self.num_by_status.get(status, 0) + number
        for row in output.outcomes.select(["doc_id", "status", "quarantine_reason", "moved_from"]).to_pylist():
            if row["status"] in (QUARANTINED, STILL_QUARANTINED):
                self.in_quarantine.add(row["doc_id"])
            else:
                self.in_quarantine.discard(row["doc_id"])
            if row["status"] == QUARANTINED:
                self.quarantined.append({"doc_id": row["doc_id"], "reason": row["quarantine_reason"]})
            if row["moved_from"] is not None:
                self.moved_from.add(row["moved_from"])

    def add_survey(self, survey: Survey) -> None:
        """Notes what a source said."""
        changes = survey.changes
        named = {candidate.doc_id for candidate in changes.upserts}
        resting = self.in_quarantine.intersection(changes.listed or ()) - named
        self.seen += changes.num_seen
        self.unchanged += changes.num_seen - len(named) - len(resting)
        self.warnings += changes.observations.warnings
        checkpoint = survey.checkpoint()
        self.sources[survey.name] = {name: value for name, value in checkpoint.items() if name != "incarnation"}

    def end(self, now: datetime) -> None:
        """Takes the lag of the slowest source."""
        marks = [datetime.fromisoformat(s["watermark"]) for s in self.sources.values() if s["watermark"]]
        self.lag_s = (now - min(marks)).total_seconds() if marks else None

    def summarise(self) -> dict[str, Any]:
        """What the pointer keeps of it: neither the sources' cursors, which it holds anyway, nor single documents."""
        values = {name: value for name, value in self.as_dict().items() if name not in ("quarantined", "sources")}
        # The pointer is read and written whole: a folder with thousands of broken links must not swell it.
        num_left_out = len(self.warnings) - MAX_KEPT_WARNINGS
        if num_left_out > 0:
            values["warnings"] = [*self.warnings[:MAX_KEPT_WARNINGS], f"... and {num_left_out} more"]
        return values

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        counts, tally = self.counts, self.num_by_status
        return {
            "run_id": self.run_id,
            "kind": self.kind,
            "executor": self.executor,
            "executor_reason": self.executor_reason,
            "backend": self.backend,
            "seconds": round(self.seconds, 3),
            "documents": {
                "seen": self.seen,
                "new": tally.get(NEW, 0),
                "changed": tally.get(CHANGED, 0),
                "moved": tally.get(MOVED, 0),
                "same": tally.get(SAME, 0) + self.unchanged,
                "deleted": self.deleted - len(self.moved_from),
                "quarantined": self.num_quarantined,
                "resumed": self.resumed,
            },
            "segments": {
                "total": counts.segments_total,
                "encoded": counts.segments_encoded,
                "reused": counts.segments_total - counts.segments_encoded,
            },
            "tokens": {
                "total": counts.tokens_total,
                "encoded": counts.tokens_encoded,
                "overhead": counts.tokens_overhead,
                "base": counts.tokens_base,
            },
            "attention": report_attention(self.attention, counts),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in sorted(counts.seconds.items())},
            "snapshot": {"before": self.snapshot_before, "after": self.snapshot_after},
            "sources": self.sources,
            "lag_seconds": None if self.lag_s is None else round(self.lag_s, 3),
            "quarantined": self.quarantined,
            "warnings": self.warnings,
            "upkeep": self.upkeep,
        }
