"""After every refresh of a random history the store equals a full rebuild. ``make oracle`` runs many more of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fault.histories import Histories, RealHistories

# The same histories on every machine; new ones are what the long form is for.
SAME_EVERYWHERE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    stateful_step_count=12,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(1200)
def test_refresh_equals_rebuild() -> None:
    run_state_machine_as_test(Histories, settings=settings(SAME_EVERYWHERE, max_examples=200))


@pytest.mark.timeout(600)
def test_refresh_equals_rebuild_with_the_real_encoder() -> None:
    run_state_machine_as_test(RealHistories, settings=settings(SAME_EVERYWHERE, max_examples=20))
