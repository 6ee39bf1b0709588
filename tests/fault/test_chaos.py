"""Many writers, killed and stopped at random and at every named step: nothing is lost, and readers never notice.

This is the short form; ``make chaos`` is the long one. Its results are in docs/chaos.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodestream.storage.registers.opening import RegisterKind
from tests.fault.chaos.harness import ChaosPlan, ChaosRun
from tests.fault.chaos.places import make_location
from tests.fault.chaos.setup import ChaosSetup, Events
from tests.fault.chaos.verdict import ChaosReport
from tests.support.registers import KINDS, find_server

SHORT_S, LONGEST_S = 8.0, 80.0
ENOUGH = 4


def has_published_enough(events: Events) -> bool:
    return sum(event["event"] == "published" for event in events) >= ENOUGH


def has_counted_twice(events: Events) -> bool:
    values = [event["value"] for event in events if event["event"] == "published"]
    return len(values) > len(set(values))


def run_chaos(
    request: pytest.FixtureRequest, tmp_path: Path, kind: RegisterKind, enough: Callable[[Events], bool], **setup: Any
) -> ChaosReport:
    location = make_location(kind, tmp_path, lambda name: find_server(request, name))
    ttl_s = 2.0 if kind == "object" else 1.0
    plan = ChaosPlan(duration_s=SHORT_S, longest_s=LONGEST_S, stopped_s=2.5 * ttl_s)
    log = tmp_path / "log"
    chosen = ChaosSetup(location=location, log=log, ttl_s=ttl_s, retained_s=6 * ttl_s, **setup)
    return ChaosRun(chosen, plan, enough=enough).run()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(request: pytest.FixtureRequest, tmp_path: Path, kind: RegisterKind) -> None:
    report = run_chaos(request, tmp_path, kind, has_published_enough)
    assert report.is_clean, report
    assert report.num_published >= ENOUGH and report.num_reads >= 5, f"this showed nothing: {report}"
    assert report.num_kills >= 2 and report.num_stops >= 2, f"this showed nothing: {report}"


def test_without_the_fence_updates_are_lost(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The same harness without the fence: what it looks for does happen then, and it sees it."""
    report = run_chaos(request, tmp_path, "local", has_counted_twice, is_fenced=False)
    assert report.num_duplicate > 0 and not report.is_clean, report
