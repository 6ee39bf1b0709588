"""After every refresh of a random history the store equals a full rebuild. ``make oracle`` runs many more of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fault.histories import Histories, RealHistories
from tests.fault.table_histories import TableHistories, WithoutLookback

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
def test_refresh_of_a_table_equals_rebuild() -> None:
    run_state_machine_as_test(TableHistories, settings=settings(SAME_EVERYWHERE, max_examples=80))


def test_a_transaction_longer_than_the_lookback_is_noticed() -> None:
    """The control: rows that such a transaction wrote are lost, and a history shows it."""
    history = WithoutLookback()
    history.create(mode="lookback")
    history.write_in_a_transaction(name="b.md", text="Written before the refresh, seen after it.", number=0)
    history.refresh()
    history.commit(number=0)
    try:
        with pytest.raises(AssertionError):
            history.refresh()
    finally:
        history.database.close()
        history.clean_up()


@pytest.mark.timeout(600)
def test_refresh_equals_rebuild_with_the_real_encoder() -> None:
    run_state_machine_as_test(RealHistories, settings=settings(SAME_EVERYWHERE, max_examples=20))
