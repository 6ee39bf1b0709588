"""Up to where a table is complete: the bound that the next read begins at, below every transaction still open.

The bound is taken before the snapshot of the read (for times) or in it (for transaction numbers), never after.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from lodestream.pipeline.durations import format_duration
from lodestream.pipeline.sources.postgres_catalog import SqlMode, TableFacts
from lodestream.pipeline.sources.postgres_session import PostgresSession

SETTLE_S: Final = 1.0
"""A transaction that began this long before the clock was read shows in the list of open ones."""
LONG_HOLD_S: Final = 600.0
"""Two periods of five minutes: from then on the transaction that holds the bound back is named."""

_BEGINNING: Final = "-infinity"

# Sessions of other databases cannot write the table; vacuum and replication senders write no rows at all.
_OPEN: Final = """
SELECT pid, coalesce(application_name, '') AS application, coalesce(usename, '') AS role, coalesce(state, '') AS state,
       xact_start::text AS began, extract(epoch FROM $1::text::timestamptz - xact_start)::float8 AS age_s
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
  AND backend_type NOT IN ('autovacuum worker', 'walsender') AND (backend_xid IS NOT NULL OR NOT $2::text::bool)
ORDER BY xact_start LIMIT 1
"""
_PREPARED: Final = """
SELECT gid, extract(epoch FROM $1::text::timestamptz - prepared)::float8 AS age_s
FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Where the next read begins, and what it waits for.

    ``next_low``     as text, in the type of the mode's column; "" where the mode has no column
    ``clock``        the source's clock, as text
    ``watermark``    up to when everything is known; None where a prepared transaction hides that
    ``held_back_s``  how long the oldest open transaction has been open, 0 where there is none or it is not known
    """

    next_low: str
    clock: str
    watermark: datetime | None
    held_back_s: float = 0.0
    warnings: tuple[str, ...] = ()


def read_bounds(session: PostgresSession, mode: SqlMode, facts: TableFacts, *, low: str | None) -> Bounds:
    """Takes the upper bound; in mode xid ``bound_by_transactions`` completes it inside the snapshot.

    Args:
        session: outside any transaction, so that the list of open ones is that of this moment.
        mode: how changes are found.
        facts: of the table.
        low: where the last read began; None for a first one.
    """
    # The clock first: a transaction that begins after it is later than the bound, whether it is seen or not.
    clock = session.query_value("SELECT clock_timestamp()::text")
    if mode == "lookback" and facts.is_standby:
        replayed = session.query_value("SELECT coalesce(pg_last_xact_replay_timestamp(), 'epoch')::text")
        clock = min(clock, replayed, key=parse_time)
    now = parse_time(clock)
    if mode in ("lookback", "scan"):
        return Bounds(next_low=clock if mode == "lookback" else "", clock=clock, watermark=now)
    return _hold_back(session, mode, facts, clock, low)


def bound_by_transactions(session: PostgresSession) -> str:
    """The number below which every transaction has ended, in the snapshot that the session reads in."""
    found: str = session.query_value("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
    return found


def parse_time(text: str) -> datetime:
    """A time as the server writes it in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def _hold_back(session: PostgresSession, mode: SqlMode, facts: TableFacts, clock: str, low: str | None) -> Bounds:
    now = parse_time(clock)
    settled = datetime.fromtimestamp(now.timestamp() - SETTLE_S, UTC).isoformat()
    prepared = session.query(_PREPARED, clock)
    opened = session.query(_OPEN, clock, str(mode == "xid")) if facts.sees_all_transactions else []
    bound = settled
    held_back_s = 0.0
    warnings = []
    if opened:
        bound = min(settled, opened[0]["began"], key=parse_time)
        held_back_s = max(0.0, opened[0]["age_s"])
        if held_back_s > LONG_HOLD_S:
            warnings.append(_name_transaction(opened[0]))
    if prepared:
        # When it began is nowhere to be read, but it began after the last bound, which lies below all open then.
        bound = low or _BEGINNING
        held_back_s = max(held_back_s, prepared[0]["age_s"])
        warnings.append(
            f"the prepared transaction {prepared[0]['gid']!r} holds the cursor back; type: COMMIT PREPARED or ROLLBACK "
            f"PREPARED '{prepared[0]['gid']}';"
        )
    if mode == "xid":
        return Bounds(next_low="", clock=clock, watermark=now, held_back_s=held_back_s, warnings=tuple(warnings))
    return Bounds(
        next_low=bound,
        clock=clock,
        watermark=None if bound == _BEGINNING else parse_time(bound),
        held_back_s=held_back_s,
        warnings=tuple(warnings),
    )


def _name_transaction(row: dict[str, object]) -> str:
    age = format_duration(round(float(str(row["age_s"]))))
    who = f"role {row['role']}, application {row['application'] or 'unknown'}, {row['state']}"
    return (
        f"process {row['pid']} ({who}) has had a transaction open for {age}, and the cursor waits for it; "
        f"type: SELECT pg_terminate_backend({row['pid']});"
    )
