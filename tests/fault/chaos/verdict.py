"""What came out of a chaos run: what its processes wrote down, against what is in the store."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from lodestream.storage.store import FeatureStore
from tests.fault.chaos.process import prepare_process
from tests.fault.chaos.setup import COUNTER, ChaosSetup, find_faults, name_tally, read_events
from tests.support.store_rows import read_contents


@dataclass(kw_only=True)
class ChaosReport:
    """What came out.

    ``num_published``  increments that a worker was told are published
    ``num_lost``       of them, those that are not in the store at the end
    ``num_duplicate``  increments that two were told they had made
    ``faults``         everything that must not be seen: mixed snapshots, epochs that go back, unexpected errors
    """

    num_published: int = 0
    counter: int = 0
    num_lost: int = 0
    num_duplicate: int = 0
    num_backward: int = 0
    num_refused: Counter[str] = field(default_factory=Counter)
    num_reads: int = 0
    num_pinned_reads: int = 0
    num_upkeeps: int = 0
    num_kills: int = 0
    num_stops: int = 0
    num_restarts: int = 0
    steps_hit: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all was as it must be."""
        return not self.faults and self.num_lost == self.num_duplicate == self.num_backward == 0


def judge(setup: ChaosSetup, num_workers: int) -> ChaosReport:
    """Compares what the workers were told with what is in the store."""
    report = ChaosReport()
    events = read_events(setup.log)
    published = sorted(
        (event for event in events if event["event"] == "published"), key=lambda event: event["sequence"]
    )
    contents = _read_final(setup)
    report.faults += [fault for event in events if event["event"] == "fault" for fault in event["faults"]]
    report.faults += list(find_faults(contents))
    report.num_published = len(published)
    report.counter = int(contents.get(COUNTER, ["0"])[0])
    for slot in range(num_workers):
        told = Counter(event["own"] for event in published if event["slot"] == slot)
        kept = int(contents.get(name_tally(slot), ["0"])[0])
        report.num_duplicate += sum(number - 1 for number in told.values())
        report.num_lost += sum(own > kept for own in told)
    # Somebody counted from a number that was passed already: then the counter falls behind what was told.
    report.num_lost = max(report.num_lost, report.num_published - report.counter)
    report.num_duplicate += sum(number - 1 for number in Counter(event["value"] for event in published).values())
    report.num_backward = sum(later["epoch"] < earlier["epoch"] for earlier, later in itertools.pairwise(published))
    report.num_refused = Counter(event["error"] for event in events if event["event"] == "refused")
    report.num_reads = sum(event["event"] == "read" for event in events)
    report.num_upkeeps = sum(event["event"] == "upkeep" for event in events)
    report.num_pinned_reads = sum(event["event"] == "pinned" for event in events)
    own = [event for event in events if event["event"] in ("kill", "stop")]
    report.steps_hit = Counter(event["step"] for event in own)
    report.num_kills = sum(event["event"] == "kill" for event in own)
    report.num_stops = len(own) - report.num_kills
    return report


def _read_final(setup: ChaosSetup) -> dict[str, list[str]]:
    with prepare_process(setup):
        return read_contents(FeatureStore.open(setup.location).open_snapshot())
