"""The verbs that look after a store, as a user types them."""

from __future__ import annotations

from pathlib import Path

from tests.support import schema_1
from tests.support.store_rows import make_documents, make_features
from tests.support.workspace import Workspace, read_store, short_topics


def test_migrate(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work")
    assert workspace.command("migrate").returncode == 1
    contents = {"a.md": ["1"], "b.md": ["2"]}
    schema_1.write_store(workspace.store, features=make_features(contents), documents=make_documents(contents))
    refused = workspace.command("export", "out.parquet")
    assert refused.returncode == 1 and "next: lodestream migrate" in refused.stderr
    done = workspace.command("migrate")
    assert done.stdout == "migrated from schema version 1 to 2: 2 documents, snapshot 3\n"
    again = workspace.command("migrate", "--json")
    assert again.returncode == 0 and '"num_documents": 0' in again.stdout
    assert workspace.command("get", "a.md").stdout.count("\n") == 2


def test_going_back_and_forth(tmp_path: Path) -> None:
    """After a rollback the next refresh computes again what the sources have changed since."""
    workspace = Workspace.create(tmp_path / "work", short_topics(3))
    workspace.run()
    before = read_store(workspace.open_snapshot())
    workspace.write("new.md", "# New\n\nOne more document.\n")
    workspace.run()
    after = read_store(workspace.open_snapshot())
    listed = workspace.command("snapshots", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["1", "2"] and "<- latest" in listed.stdout
    asked = workspace.command("snapshots", "rollback", "1")
    assert asked.returncode != 0 and workspace.open_snapshot().sequence == 2
    done = workspace.command("snapshots", "rollback", "1", "--yes")
    assert done.stdout == "snapshot 2 -> 3, which is 1 again\n"
    assert read_store(workspace.open_snapshot()) == before
    report = workspace.run()
    assert report.as_dict()["documents"]["new"] == 1 and report.snapshot_after == 4
    assert read_store(workspace.open_snapshot()) == after
    assert workspace.command("snapshots", "rollback", "9", "--yes").returncode == 1
