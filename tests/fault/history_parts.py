"""What random histories are made of: steps that are counted, and a store's rows in a form that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from hypothesis.stateful import rule as hypothesis_rule

from lodestream.storage.store import Snapshot
from tests.support.workspace import read_features

Rows = dict[str, list[dict[str, Any]]]


def rule(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A step of a history, counted by its name."""

    def decorate(step: Callable[..., None]) -> Any:
        @wraps(step)
        def counted(self: Any, **given: Any) -> None:
            self.done[step.__name__] += 1
            step(self, **given)

        return hypothesis_rule(**strategies)(counted)

    return decorate


def rows_by_document(snapshot: Snapshot) -> Rows:
    """All feature rows of a snapshot, without times and names of runs, by document."""
    rows: Rows = {}
    for row in read_features(snapshot):
        rows.setdefault(row["doc_id"], []).append(row)
    return {doc_id: sort_rows(found) for doc_id, found in rows.items()}


def sort_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of their keys, with what may differ between equal stores left out."""
    volatile = ("computed_at", "run_id", "source_version")
    kept = [{name: value for name, value in row.items() if name not in volatile} for row in rows]
    for row in kept:
        codes = row["codes"]
        row["codes"] = codes if isinstance(codes, bytes) else bytes(code & 255 for code in codes)
    return sorted(kept, key=lambda row: row["key"])
