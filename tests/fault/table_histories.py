"""Random histories of a table: what those of files have, and transactions that end long after they wrote.

The source is a table of SQLite, asked through the same code as any. Its rows are stamped when they are written and can
be seen when their transaction ends; several transactions are open at once, and end in any order. Its clock jumps.
"""

from __future__ import annotations

import sqlite3
import time

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition

from lodestream.pipeline.config.sources import SqliteSource
from lodestream.pipeline.sources import sqlite
from lodestream.pipeline.sources.sqlite_query import write_log
from tests.fault.histories import NAME, PARAGRAPHS, TEXTS, Histories
from tests.fault.history_parts import rule

CONFIG = """
[sources.table]
kind = "sqlite"
path = "docs.db"
table = "docs"
text_column = "body"
updated_column = "updated_at"
mode = "{mode}"
{more}
text_format = "markdown"
"""
MORE = {"log": 'log_table = "docs_log"', "lookback": 'lookback = "{lookback}"', "scan": ""}
# How far from the clock a row's stamp may be, in seconds: all within the lookback.
SHIFTS = {"old": -1200, "older": -2400, "now": 0, "future": 3600}
JUMPS = st.sampled_from([-3 * 86400, -7200, -5, 0, 5, 7200, 2 * 86400])
NUMBER = st.integers(0, 3)

Change = tuple[str, bytes | None, float]


class TableHistories(Histories):
    """``open`` are the changes of the transactions that have not ended: name, content (None: deleted), stamp."""

    lookback = "1h"

    @initialize(mode=st.sampled_from(sorted(MORE)))
    def create(self, mode: str) -> None:  # type: ignore[override]
        self.finds_deletions = mode != "lookback"  # there only the daily sweep does
        self.open: list[list[Change]] = []
        self.shift_s = 0.0
        self.begin()
        more = MORE[mode].format(lookback=self.lookback)
        (self.folder / "lodestream.toml").write_text(CONFIG.format(mode=mode, more=more))
        self.database = sqlite3.connect(self.folder / "docs.db", isolation_level=None)
        self.database.execute("CREATE TABLE docs (id TEXT PRIMARY KEY, body, updated_at REAL)")
        config = SqliteSource(kind="sqlite", path="docs.db", table="docs", text_column="body", log_table="docs_log")
        self.database.executescript(write_log(config))
        self.write("a.md", PARAGRAPHS[1].encode(), "old")
        self.run()

    # ---- transactions ----------------------------------------------------------------------------------------------

    @rule(name=NAME, text=TEXTS, number=NUMBER)
    def write_in_a_transaction(self, name: str, text: str, number: int) -> None:
        """Stamped now; seen by nobody before the transaction ends."""
        self.transaction(number).append((name, text.encode(), self.clock()))

    @precondition(lambda self: self.finds_deletions)
    @rule(name=NAME, number=NUMBER)
    def delete_in_a_transaction(self, name: str, number: int) -> None:
        self.transaction(number).append((name, None, self.clock()))

    @precondition(lambda self: self.open)
    @rule(number=NUMBER)
    def commit(self, number: int) -> None:
        for name, content, stamp in self.open.pop(number % len(self.open)):
            if content is not None:
                self.store(name, content, stamp)
                self.note(name, content)
            else:
                self.drop(name)

    @precondition(lambda self: self.open)
    @rule(number=NUMBER)
    def roll_back(self, number: int) -> None:
        self.open.pop(number % len(self.open))

    @rule(shift_s=JUMPS)
    def jump_clock(self, shift_s: float) -> None:
        """The source's clock is set, forward or back, after a refresh that saw what was written under the old time.

        A transaction that is open across it would be longer than the lookback by that clock.
        """
        self.open.clear()
        self.run()
        self.shift_s = shift_s
        clock = f"SELECT (julianday('now') - 2440587.5) * 86400.0 + {shift_s} AS now"
        self.patches.setattr(sqlite, "_CLOCK", clock)

    def transaction(self, number: int) -> list[Change]:
        """One that is open, or a new one."""
        if number >= len(self.open):
            self.open.append([])
            return self.open[-1]
        return self.open[number]

    # ---- where the documents are -----------------------------------------------------------------------------------

    def put(self, name: str, content: bytes, when: str) -> None:
        self.store(name, content, self.stamp(name, when))

    def store(self, name: str, content: bytes, stamp: float) -> None:
        row = (name, content, stamp)
        self.database.execute(
            "INSERT INTO docs VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET body = ?2, updated_at = ?3", row
        )

    def set_time(self, name: str, when: str) -> None:
        self.database.execute("UPDATE docs SET updated_at = ? WHERE id = ?", (self.stamp(name, when), name))

    def remove(self, name: str) -> None:
        self.database.execute("DELETE FROM docs WHERE id = ?", (name,))

    def move(self, old: str, new: str) -> None:
        self.database.execute("DELETE FROM docs WHERE id = ?", (new,))
        self.database.execute("UPDATE docs SET id = ?, updated_at = ? WHERE id = ?", (new, self.clock(), old))

    def duplicate(self, old: str, new: str) -> None:
        self.put(new, self.files[old], "now")

    def format_of(self, name: str) -> str:
        return "markdown"

    def clock(self) -> float:
        """What the source's clock says."""
        return time.time() + self.shift_s

    def stamp(self, name: str, when: str) -> float:
        if when != "same":
            return self.clock() + SHIFTS[when]
        # A clock does not stamp what is written now with a time before the lookback.
        found = self.database.execute("SELECT updated_at FROM docs WHERE id = ?", (name,)).fetchone()
        return max(float(found[0]), self.clock() - 1800)

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
        super().teardown()


class WithoutLookback(TableHistories):
    """The control: a lookback shorter than the transactions."""

    lookback = "0s"
