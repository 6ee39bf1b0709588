"""The last runs, kept in the published pointer: one short entry each, so that ``status`` needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

KEPT_RUNS: Final = 20


def append_entry(before: Mapping[str, Any], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of the last runs, the newest last.

    Args:
        before: what the pointer says of the run before (``PointerRecord.run``).
        summary: ``RunReport.summarise`` of the run that is published now, with ``ended_at``.
    """
    documents = summary["documents"]
    entry = {
        "run_id": summary["run_id"],
        "ended_at": summary["ended_at"],
        "seconds": summary["seconds"],
        "documents": {name: number for name, number in documents.items() if number},
        "segments_encoded": summary["segments"]["encoded"],
        "tokens_encoded": summary["tokens"]["encoded"],
        "tokens_total": summary["tokens"]["total"],
        "snapshot": summary["snapshot"]["before"],
    }
    return [*before.get("recent", ()), entry][-KEPT_RUNS:]


def find_rate(recent: list[Mapping[str, Any]]) -> float | None:
    """Tokens a second of the last run that encoded enough to tell; None where there is none."""
    for entry in reversed(recent):
        if entry["tokens_encoded"] >= MIN_TOKENS and entry["seconds"] > 0:
            return float(entry["tokens_encoded"] / entry["seconds"])
    return None


MIN_TOKENS: Final = 500
"""A run that encoded less spent its time elsewhere."""
