from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from lodestream.storage.verify import verify_store
from tests.support.workspace import Workspace, short_topics


def test_whatever_runs_do_is_sound(tmp_path: Path) -> None:
    """New, changed, moved, deleted, empty, unreadable: every row is as it was written, and belongs to its document."""
    documents = short_topics(5)
    names = list(documents)
    workspace = Workspace.create(tmp_path / "work", documents)
    workspace.write("empty.txt", "")
    workspace.write("torn.txt", b"\xff\xfe\x00\xd8" * 9)
    workspace.run()
    require_sound(workspace)
    workspace.write(names[0], documents[names[0]] + "\n\nThe ferry was late again.\n")
    workspace.write(names[1], b"\x81\x8d\x00" * 50)
    (workspace.docs / names[2]).rename(workspace.docs / "moved.rst")
    (workspace.docs / names[3]).unlink()
    report = workspace.run()
    assert report.snapshot_after == 2
    require_sound(workspace)


def require_sound(workspace: Workspace) -> None:
    found = verify_store(workspace.store, deep=True, sweep_after=timedelta(days=1))
    assert found.findings == ()
    assert found.num_rows["features"] > 20
