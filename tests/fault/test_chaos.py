"""Many writers, killed and stopped at random and at every named step: nothing is lost, and readers never notice.

This is the short form; ``make chaos`` is the long one. Its results are in docs/chaos.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodestream.storage.registers.opening import RegisterKind
from tests.fault.chaos.harness import LAST_WINDOW, ChaosPlan, ChaosRun
from tests.fault.chaos.places import make_location
from tests.fault.chaos.setup import ChaosSetup, Events
from tests.fault.chaos.verdict import ChaosReport
from tests.support.registers import KINDS, find_server

SHORT_S, LONGEST_S = 8.0, 80.0
ENOUGH = 4
LEAST_TROUBLE = 2


def has_published_enough(events: Events) -> bool:
    return sum(event["event"] == "published" for event in events) >= ENOUGH


def has_counted_twice(events: Events) -> bool:
    values = [event["value"] for event in events if event["event"] == "published"]
    return len(values) > len(set(values))


def has_told_a_sleeper(events: Events) -> bool:
    return any(event["event"] == "refused" and event["error"] in ("FencedError", "LeaseLost") for event in events)


def run_chaos(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: RegisterKind,
    enough: Callable[[Events], bool],
    *,
    is_fenced: bool = True,
    **rough: Any,
) -> ChaosReport:
    location = make_location(kind, tmp_path, lambda name: find_server(request, name))
    ttl_s = 2.0 if kind == "object" else 1.0
    log = tmp_path / "log"
    setup = ChaosSetup(location=location, log=log, is_fenced=is_fenced, ttl_s=ttl_s, retained_s=10 * ttl_s)
    plan = ChaosPlan(**{"duration_s": SHORT_S, "longest_s": LONGEST_S, "stopped_s": 2.5 * ttl_s, **rough})
    return ChaosRun(setup, plan, enough=enough).run()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(request: pytest.FixtureRequest, tmp_path: Path, kind: RegisterKind) -> None:
    report = run_chaos(request, tmp_path, kind, has_published_enough, least_trouble=LEAST_TROUBLE, kill_every_s=2.0)
    assert report.is_clean, report
    assert report.num_published >= ENOUGH and report.num_reads >= 5, f"this showed nothing: {report}"
    assert min(report.num_kills, report.num_stops) >= LEAST_TROUBLE, f"this showed nothing: {report}"


@pytest.mark.parametrize("is_fenced", [True, False])
def test_the_fence_is_what_keeps_updates(request: pytest.FixtureRequest, tmp_path: Path, is_fenced: bool) -> None:
    """Writers that sleep past their TTL before the swing. With the fence they are told; without it, in the same harness
    under the same plan, updates are lost, and it sees that."""
    enough = has_told_a_sleeper if is_fenced else has_counted_twice
    report = run_chaos(
        request, tmp_path, "local", enough, is_fenced=is_fenced, duration_s=3.0, windows=LAST_WINDOW, stopped_s=4.0
    )
    if is_fenced:
        assert report.is_clean and report.num_refused["FencedError"] + report.num_refused["LeaseLost"] > 0, report
    else:
        assert report.num_duplicate > 0 and not report.is_clean, report
