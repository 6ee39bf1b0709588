"""What a refresh loads that finds nothing new in a table, and how a query is broken off."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lodestream.errors import SourceUnavailable
from lodestream.pipeline.sources.postgres_session import PostgresSession
from tests.support.postgres import MODE_SETTINGS, connect, make_table
from tests.support.workspace import run_command, run_python

REFRESH = """
import sys
from lodestream.pipeline.cli.app import main
sys.argv = ["lodestream", "refresh"]
try: main()
except SystemExit as end: assert not end.code
print("loaded:", *sorted({"torch", "lance", "pandas", "ray", "tokenizers"} & set(sys.modules)))
"""
"""A refresh that then names what it has loaded of all that takes long to load."""


@pytest.mark.parametrize("mode", ["xid", "holdback"])
def test_a_refresh_that_finds_nothing_loads_nothing_heavy(tmp_path: Path, postgres_url: str, mode: str) -> None:
    make_table(postgres_url, 3)
    with connect(postgres_url) as connection:  # rows of the last minutes are read again in mode holdback
        connection.execute("ALTER TABLE docs DISABLE TRIGGER USER")
        connection.execute("UPDATE docs SET updated_at = now() - interval '1 day'")
        connection.execute("ALTER TABLE docs ENABLE TRIGGER USER")
    settings = {"url": postgres_url, "table": "docs", "text_column": "body", "mode": mode, **MODE_SETTINGS[mode]}
    lines = ["[sources.pg]", 'kind = "postgres"', *(f'{name} = "{value}"' for name, value in settings.items())]
    (tmp_path / "lodestream.toml").write_text("\n".join(lines))
    first = run_command(tmp_path, "run")
    assert first.returncode == 0, first.stderr
    done = run_python(tmp_path, REFRESH)
    assert done.returncode == 0 and " 0 changed, 0 new," in done.stdout, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_an_interrupt_breaks_a_query_off(postgres_url: str) -> None:
    session = PostgresSession("pg", postgres_url)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with session, pytest.raises(KeyboardInterrupt):
        session.query("SELECT pg_sleep(600)::text")
    assert time.monotonic() - began < 300


def test_a_query_that_fails_between_two_batches_is_for_later(postgres_url: str) -> None:
    with PostgresSession("pg", postgres_url) as session, pytest.raises(SourceUnavailable, match="division by zero"):
        session.query("SELECT repeat('x', 1000), 1 / (20000 - i) FROM generate_series(1, 100000) AS i")


def test_a_connection_is_closed_under_a_result_that_is_not_at_its_end(postgres_url: str) -> None:
    session = PostgresSession("pg", postgres_url)
    rows = session.stream("SELECT i FROM generate_series(1, 1000000) AS i")
    assert next(rows).num_rows
    session.close()
    with pytest.raises(SourceUnavailable):
        next(rows)
