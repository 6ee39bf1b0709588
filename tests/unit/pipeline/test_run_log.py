"""The entries of the last runs that the pointer keeps."""

from __future__ import annotations

from typing import Any

from lodestream.pipeline.report import RunReport
from lodestream.pipeline.run_log import KEPT_RUNS, append_entry, find_rate


def make_summary(number: int, *, tokens: int = 0, seconds: float = 1.0) -> dict[str, Any]:
    report = RunReport(run_id=f"run-{number}", kind="refresh", seconds=seconds)
    report.counts.tokens_encoded = tokens
    return report.summarise() | {"ended_at": "2026-01-02T03:04:05+00:00"}


def append_all(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    run: dict[str, Any] = {}
    for summary in summaries:
        run = summary | {"recent": append_entry(run, summary)}
    return run


def test_the_last_runs_are_kept_in_order() -> None:
    run = append_all([make_summary(number) for number in range(KEPT_RUNS + 5)])
    assert [entry["run_id"] for entry in run["recent"]] == [f"run-{n}" for n in range(5, KEPT_RUNS + 5)]


def test_an_entry_of_an_older_version_without_entries_is_no_obstacle() -> None:
    assert len(append_entry({"run_id": "old"}, make_summary(1))) == 1


def test_rate_is_that_of_the_last_run_that_encoded_enough() -> None:
    runs = [make_summary(1, tokens=9000, seconds=3), make_summary(2, tokens=8000, seconds=2), make_summary(3, tokens=5)]
    assert find_rate(append_all(runs)["recent"]) == 4000
    assert find_rate(append_all(runs[2:])["recent"]) is None
