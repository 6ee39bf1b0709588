"""Flushing what a writer wrote, while another one writes and cleans up next to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.storage import durability
from lodestream.storage.durability import list_files, sync_new_files


def test_flushes_new_files_and_the_folders_that_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "table"
    (root / "old").mkdir(parents=True)
    (root / "old" / "known").write_text("1")
    known = list_files(root)
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "new").write_text("2")
    flushed: list[str] = []
    monkeypatch.setattr(durability, "sync_path", lambda path: flushed.append(str(path.relative_to(tmp_path))))
    assert sync_new_files(root, known) == {"old/known", "a/b/new"}
    assert sorted(flushed) == sorted(["table/a/b/new", "table/a/b", "table/a", "table", "."])


@pytest.mark.parametrize("vanishing", ["file", "folder"])
def test_temporary_files_of_another_writer_may_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vanishing: str
) -> None:
    (tmp_path / "t" / "data").mkdir(parents=True)
    paths = [tmp_path / "t" / "data" / name for name in (".tmpXyz", "mine")]
    for path in paths:
        path.write_text("1")
    sync_path = durability.sync_path
    flushed: list[str] = []

    def sync(path: Path) -> None:
        if path == paths[0] and vanishing == "file":
            path.unlink()
        sync_path(path)
        flushed.append(path.name)

    monkeypatch.setattr(durability, "sync_path", sync)
    if vanishing == "folder":
        listed = list_files(tmp_path / "t") | {"gone/.tmpAbc"}
        monkeypatch.setattr(durability, "list_files", lambda root: listed)
    sync_new_files(tmp_path / "t", frozenset())
    assert {"mine", "data", "t"} <= set(flushed)
