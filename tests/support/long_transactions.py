"""Writers with long transactions, and the strategies that follow them: what the cursors are measured with.

Each of eight writers works on its own rows; a fifth of its transactions stays open for 0.5 to 2 s after its first
statement, so that its rows are stamped long before they can be seen.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.support.known import Follower
from tests.support.postgres import connect, make_table, open_table, stored

NUM_WRITERS = 8
LONG_SHARE = 0.2
LONG_S = (0.5, 2.0)
LOOKBACK = "5s"
PERIOD_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a strategy made of the table: rows it read, rows of the table it lacks, rows it holds an old text of, rows
    it holds that are gone, and how many there were."""

    num_read: int
    num_missing: int
    num_stale: int
    num_undeleted: int
    num_rows: int
    held_back_s: float


def measure_strategies(url: str, *, seconds: float, seed: int = 0) -> Mapping[str, Outcome]:
    """Lets the writers write and every strategy follow them, then asks each once more and compares.

    Args:
        url: an empty database.
        seconds: how long the writers begin transactions.
        seed: of what they write.
    """
    make_table(url)
    followers = {mode: _Following(open_table(url, mode, lookback=LOOKBACK)) for mode in ("xid", "holdback", "lookback")}
    naive = NaiveCursor(url)
    strategies: Mapping[str, _Following | NaiveCursor] = {"updated_at > cursor": naive, **followers}
    stop_at = time.monotonic() + seconds
    writers = [
        threading.Thread(target=_write, args=(url, number, random.Random(seed * 100 + number), stop_at))
        for number in range(NUM_WRITERS)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        began = time.monotonic()
        for strategy in strategies.values():
            strategy.refresh()
        time.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))
    for strategy in strategies.values():
        strategy.refresh()
    wanted = stored(url)
    return {name: _compare(strategy, wanted) for name, strategy in strategies.items()}


class NaiveCursor:
    """The cursor that most tools have, as the control: rows with a time above the largest one seen."""

    held_back_s = 0.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._cursor = "-infinity"
        self.texts: dict[str, str] = {}
        self.num_read = 0

    def refresh(self) -> None:
        """Reads once, and follows the tombstones in the same way."""
        with connect(self._url) as connection:
            rows = connection.execute(
                "SELECT id, body, updated_at::text, false FROM docs WHERE updated_at > %s::timestamptz "
                "UNION ALL SELECT id, '', updated_at::text, true FROM gone WHERE updated_at > %s::timestamptz "
                "ORDER BY 3, 4",
                (self._cursor, self._cursor),
            ).fetchall()
        for row_id, text, updated_at, is_gone in rows:
            self._cursor = updated_at
            if is_gone:
                self.texts.pop(str(row_id), None)
            else:
                self.texts[str(row_id)] = text
        self.num_read += len(rows)


class _Following:
    """A source that is followed, and how much it read and waited."""

    def __init__(self, source: object) -> None:
        self._follower = Follower(source)  # type: ignore[arg-type]
        self._waits: list[float] = []
        self.num_read = 0

    @property
    def texts(self) -> Mapping[str, str]:
        return self._follower.texts

    @property
    def held_back_s(self) -> float:
        return sum(self._waits) / max(1, len(self._waits))

    def refresh(self) -> None:
        """Follows once."""
        changes = self._follower.refresh()
        self.num_read += changes.num_seen
        self._waits.append(changes.observations.held_back_s)


def _compare(strategy: _Following | NaiveCursor, wanted: Mapping[str, str]) -> Outcome:
    found = strategy.texts
    return Outcome(
        num_read=strategy.num_read,
        num_missing=len(wanted.keys() - found.keys()),
        num_stale=sum(found[row_id] != text for row_id, text in wanted.items() if row_id in found),
        num_undeleted=len(found.keys() - wanted.keys()),
        num_rows=len(wanted),
        held_back_s=strategy.held_back_s,
    )


def _write(url: str, number: int, chance: random.Random, stop_at: float) -> None:
    """One writer: transactions of one to three statements on rows that only it writes."""
    rows = _OwnRows(number * 1_000_000, chance)
    with connect(url) as connection:
        while time.monotonic() < stop_at:
            with connection.transaction():
                rows.change(connection.execute)
                if chance.random() < LONG_SHARE:
                    time.sleep(chance.uniform(*LONG_S))
                for _ in range(chance.randint(0, 2)):
                    rows.change(connection.execute)
            time.sleep(chance.uniform(0.01, 0.1))


class _OwnRows:
    """The rows of one writer."""

    def __init__(self, first: int, chance: random.Random) -> None:
        self._next = first
        self._ids: list[int] = []
        self._chance = chance

    def change(self, execute: Callable[..., object]) -> None:
        """Inserts a row, or updates or deletes one."""
        chance, text = self._chance, f"text {self._chance.getrandbits(64):x}"
        what = chance.random()
        if self._ids and what < 0.4:
            execute("UPDATE docs SET body = %s WHERE id = %s", (text, chance.choice(self._ids)))
        elif self._ids and what < 0.45:
            execute("DELETE FROM docs WHERE id = %s", (self._ids.pop(chance.randrange(len(self._ids))),))
        else:
            self._next += 1
            self._ids.append(self._next)
            execute("INSERT INTO docs (id, body) VALUES (%s, %s)", (self._next, text))
