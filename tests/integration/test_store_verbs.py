"""The verbs that look after a store, as a user types them."""

from __future__ import annotations

from pathlib import Path

from tests.support import schema_1
from tests.support.store_rows import make_documents, make_features
from tests.support.workspace import Workspace


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
