"""The long form of ``test_oracle.py``: many random histories, new ones each time.

python -m tests.fault.oracle [NUMBER]      writes docs/bench/oracle.jsonl; ends with 1 and the shortest failing history
"""

from __future__ import annotations

import sys
import time

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.bench import harness
from tests.fault.histories import Histories

STEPS = 20


class CountedHistories(Histories):
    """Histories, with a count of the refreshes that were compared with a rebuild."""

    num_checked = 0

    def check(self) -> None:
        super().check()
        CountedHistories.num_checked += 1


def main(number: int) -> None:
    """Runs ``number`` histories."""
    started = time.perf_counter()
    form = settings(
        max_examples=number,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(CountedHistories, settings=form)
    config = {"histories": number, "steps": STEPS, "seconds": round(time.perf_counter() - started)}
    harness.start("oracle")
    harness.record(
        "oracle", "lodestream", "refreshes equal to a rebuild", "", [CountedHistories.num_checked], config=config
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
