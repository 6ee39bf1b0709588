"""What a refresh loads that finds nothing to do: the question to the source is nearly all that it costs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

from lodestream.pipeline.config.settings import load_config
from lodestream.pipeline.config.sources import SqliteSource
from lodestream.pipeline.sources.sqlite_query import write_log
from tests.support.workspace import Workspace

HEAVY = {"torch", "ray", "triton", "lance", "tokenizers", "pandas"}


def refresh(folder: Path) -> tuple[str, set[str]]:
    """What another process prints, and which of HEAVY it loaded."""
    code = (
        "import sys; from lodestream.pipeline.cli.app import main; sys.argv = ['lodestream', 'refresh']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        f"print('loaded:', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed, _, loaded = done.stdout.rpartition("loaded:")
    return printed, set(loaded.split())


def test_of_files_loads_no_engine(tmp_path: Path) -> None:
    """Files are compared with what the store knows of them: its tables are read."""
    workspace = Workspace.create(tmp_path / "work", {"a.md": "A note on tides.\n", "b.md": "Another one.\n"})
    workspace.run()
    printed, loaded = refresh(workspace.root)
    assert "2 seen" in printed and loaded - {"pandas"} == {"lance"}


def test_of_a_table_with_a_log_opens_no_table_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "lodestream.toml").write_text(
        "[sources.notes]\nkind = 'sqlite'\npath = 'notes.db'\ntable = 'notes'\nlog_table = 'notes_log'\n"
    )
    config = load_config(start=tmp_path, environ={}).config.sources["notes"]
    assert isinstance(config, SqliteSource)
    connection = sqlite3.connect(tmp_path / "notes.db")
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    connection.executescript(write_log(config))
    connection.execute("INSERT INTO notes VALUES (1, 'A row on tides.')")
    connection.commit()
    first, loaded = refresh(tmp_path)
    assert "1 new" in first and loaded >= {"lance", "tokenizers", "torch"}
    second, loaded = refresh(tmp_path)
    assert " 0 changed, 0 new," in second and not loaded
    connection.execute("UPDATE notes SET text = 'Another row on tides.'")
    connection.commit()
    connection.close()
    assert "1 changed" in refresh(tmp_path)[0]
