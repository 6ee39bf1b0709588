"""What a refresh costs when nothing has changed, on a table of PostgreSQL with 1,000,000 rows, modes xid and holdback.

The source alone, in this process: all rows named, then nothing found. Then whole processes of ``lodestream refresh``,
wall and processor time, on a store that knows all the rows (its rows are made up: the encoder has no part in this).
Beside them a process that imports what any such process must.

    python tests/bench/bench_postgres_tick.py [ROWS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench_empty_tick import COMPILED, fill_store
from harness import record, start

from lodestream.pipeline.config.settings import load_config
from tests.support.known import Known
from tests.support.postgres import MODE_SETTINGS, connect, make_table, open_table
from tests.support.servers import run_postgres
from tests.support.workspace import command_environ, last_json, run_command

NAME = "postgres_tick"
ROUNDS = 5
TICKS = 20
MODES = ("xid", "holdback")
NUM_ROWS = 1_000_000


def main() -> None:
    """Measures the source, then the process, one mode after the other."""
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_ROWS
    start(NAME)
    with run_postgres() as server, tempfile.TemporaryDirectory() as folder:
        fill_table(server.url, num_rows)
        for mode in MODES:
            measure_source(server.url, mode)
            record_processes(mode, partial(refresh, make_space(Path(folder) / mode, server.url, mode)), num_rows)
    record_processes("imports only", import_only, num_rows)


def fill_table(url: str, num_rows: int) -> None:
    """The table of the tests, with short rows written by one statement."""
    make_table(url)
    with connect(url) as connection:
        connection.execute(
            "INSERT INTO docs (id, body) SELECT i, 'row ' || i FROM generate_series(1, %s) AS i", (num_rows,)
        )
        connection.execute("VACUUM ANALYZE docs")


def measure_source(url: str, mode: str) -> None:
    """Names all rows once, then asks again and again what changed."""
    source = open_table(url, mode)
    began = time.perf_counter()
    first = source.changes(None, Known())
    record(NAME, mode, "all rows named", "s", [time.perf_counter() - began], x=len(first.upserts))
    num_rows, cursor, seconds = len(first.upserts), first.cursor, []
    del first
    for _ in range(TICKS):
        began = time.perf_counter()
        source.incarnation()
        found = source.changes(cursor, Known())
        seconds.append(time.perf_counter() - began)
        assert not found.upserts
        cursor = found.cursor
    record(NAME, mode, "nothing found", "s", seconds, x=num_rows)


def make_space(folder: Path, url: str, mode: str) -> Path:
    """A folder with a configuration for the table, and a store that knows all of its rows."""
    folder.mkdir()
    settings = {"url": url, "table": "docs", "text_column": "body", "mode": mode, **MODE_SETTINGS[mode]}
    lines = ["[sources.pg]", 'kind = "postgres"', *(f'{name} = "{value}"' for name, value in settings.items())]
    (folder / "lodestream.toml").write_text("\n".join(lines))
    fill_store(load_config(start=folder, environ={}))
    return folder


def record_processes(provider: str, run: Callable[[], None], num_rows: int) -> None:
    """Wall and processor seconds of some runs of a process."""
    wall, processor = [], []
    for _ in range(ROUNDS):
        before, began = os.times(), time.perf_counter()
        run()
        after = os.times()
        wall.append(time.perf_counter() - began)
        processor.append(after.children_user + after.children_system - before.children_user - before.children_system)
    record(NAME, provider, "process, wall", "s", wall, x=num_rows)
    record(NAME, provider, "process, processor", "s", processor, x=num_rows)


def refresh(folder: Path) -> None:
    """One refresh that finds nothing."""
    done = run_command(folder, "refresh", "--json", environ=COMPILED)
    documents = last_json(done)["documents"]
    assert done.returncode == 0 and documents["new"] == documents["changed"] == documents["deleted"] == 0, done.stdout


def import_only() -> None:
    """A process that imports the command line, Arrow and the driver."""
    code = "import lodestream.pipeline.cli.app, pyarrow, adbc_driver_postgresql"
    subprocess.run([sys.executable, "-c", code], env=command_environ() | COMPILED, check=True)


if __name__ == "__main__":
    main()
