"""What a run did, for people and for machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lodestream.actors.options import EncodeCounts
from lodestream.pipeline.stages import CHANGED, NEW, QUARANTINED, SAME, STILL_QUARANTINED


@dataclass(slots=True, kw_only=True)
class RunReport:
    """What a run did; ``as_dict`` is the object that ``--json`` prints."""

    run_id: str
    kind: Literal["backfill", "refresh"]
    executor: str = ""
    executor_reason: str = ""
    backend: str = ""
    seconds: float = 0.0
    seen: int = 0
    num_by_status: dict[str, int] = field(default_factory=dict)
    deleted: int = 0
    resumed: int = 0
    counts: EncodeCounts = field(default_factory=EncodeCounts)
    snapshot_before: int | None = None
    snapshot_after: int | None = None
    warnings: list[str] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)

    @property
    def num_quarantined(self) -> int:
        return self.num_by_status.get(QUARANTINED, 0) + self.num_by_status.get(STILL_QUARANTINED, 0)

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
                "same": tally.get(SAME, 0) - self.resumed,
                "deleted": self.deleted,
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
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in sorted(counts.seconds.items())},
            "snapshot": {"before": self.snapshot_before, "after": self.snapshot_after},
            "quarantined": self.quarantined,
            "warnings": self.warnings,
        }
