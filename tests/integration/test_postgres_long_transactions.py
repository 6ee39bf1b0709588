"""Eight writers, a fifth of their transactions long: no mode loses a row, and the cursor that most tools have does."""

from __future__ import annotations

from tests.support.long_transactions import measure_strategies


def test_no_mode_loses_a_row_to_a_long_transaction(postgres_url: str) -> None:
    outcomes = measure_strategies(postgres_url, seconds=12)
    control = outcomes["updated_at > cursor"]
    assert control.num_rows > 200
    assert control.num_missing > 0 and control.num_stale > 0, "the writers write what a naive cursor loses"
    for mode in ("xid", "holdback", "lookback"):
        found = outcomes[mode]
        assert (found.num_missing, found.num_stale, found.num_undeleted) == (0, 0, 0), mode
