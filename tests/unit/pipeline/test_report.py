from __future__ import annotations

from lodestream.pipeline.report import MAX_KEPT_WARNINGS, RunReport


def test_pointer_keeps_a_few_warnings_and_the_report_all() -> None:
    warnings = [f"link {number} leads nowhere" for number in range(MAX_KEPT_WARNINGS + 3)]
    report = RunReport(run_id="run", kind="refresh", warnings=list(warnings))

    assert report.as_dict()["warnings"] == warnings
    assert report.summarise()["warnings"] == [*warnings[:MAX_KEPT_WARNINGS], "... and 3 more"]


def test_few_warnings_are_kept_as_they_are() -> None:
    report = RunReport(run_id="run", kind="refresh", warnings=["one", "two"])

    assert report.summarise()["warnings"] == ["one", "two"]
