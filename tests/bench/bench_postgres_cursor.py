"""What cursors lose on a table of PostgreSQL with long transactions, and what the modes of the source read instead.

python tests/bench/bench_postgres_cursor.py
"""

from __future__ import annotations

from harness import record, start

from tests.support.long_transactions import LONG_S, LONG_SHARE, LOOKBACK, NUM_WRITERS, PERIOD_S, measure_strategies
from tests.support.servers import run_postgres

NAME = "postgres_cursor"
SECONDS = 30


def main() -> None:
    """Runs all strategies side by side on one table, once."""
    start(NAME)
    config = {
        "seconds": SECONDS,
        "writers": NUM_WRITERS,
        "long_share": LONG_SHARE,
        "long_s": LONG_S,
        "lookback": LOOKBACK,
        "period_s": PERIOD_S,
    }
    with run_postgres() as server:
        for strategy, found in measure_strategies(server.url, seconds=SECONDS).items():
            values = {
                "rows read": found.num_read,
                "rows of the table": found.num_rows,
                "missing": found.num_missing,
                "stale": found.num_stale,
                "not deleted": found.num_undeleted,
            }
            for metric, value in values.items():
                record(NAME, strategy, metric, "rows", [value], config=config)
            record(NAME, strategy, "mean hold-back", "s", [found.held_back_s], config=config)


if __name__ == "__main__":
    main()
