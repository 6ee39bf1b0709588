"""A document that is read again and has not changed costs no snapshot, and is not read a third time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lodestream.pipeline import settled
from lodestream.pipeline.explain import explain_document
from lodestream.pipeline.report import RunReport
from lodestream.pipeline.settled import KEY
from lodestream.pipeline.sources import files
from lodestream.pipeline.sources.files import FileReader
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore
from tests.support.workspace import Workspace, short_topics

DOCUMENTS = short_topics(6)
NAMES = list(DOCUMENTS)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.create(tmp_path / "work", DOCUMENTS)
    made.run()
    return made


def pointer_of(workspace: Workspace) -> PointerRecord:
    return FeatureStore.open(str(workspace.store)).pointer()


def state_of(workspace: Workspace, doc_id: str) -> dict[str, Any]:
    rows = workspace.open_snapshot().source_states().to_pylist()
    return next(row for row in rows if row["doc_id"] == doc_id)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    found: list[str] = []
    read = FileReader.read

    def note(reader: FileReader, candidates: Sequence[Any]) -> Any:
        found.extend(candidate.doc_id for candidate in candidates)
        return read(reader, candidates)

    monkeypatch.setattr(FileReader, "read", note)
    return found


def edit_just_now(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, doc_id: str, text: str) -> RunReport:
    """A refresh for which the file was written within the grain of a clock."""
    path = workspace.docs / doc_id
    path.write_text(text)
    with monkeypatch.context() as patched:
        patched.setattr(files, "RACY_NS", 3600 * 10**9)
        report = workspace.run()
    assert state_of(workspace, doc_id)["mtime_ns"] is None
    return report


def test_a_second_look_that_finds_the_same_publishes_no_snapshot(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = edit_just_now(workspace, monkeypatch, NAMES[0], "Another text on other tides.\n")
    monkeypatch.setattr(files, "RACY_NS", 0)
    reads = count_reads(monkeypatch)
    before = pointer_of(workspace)
    assert workspace.run().snapshot_after == edited.snapshot_after and reads == [NAMES[0]]
    after = pointer_of(workspace)
    assert after.tables == before.tables and list(after.checkpoint["docs"][KEY]) == [NAMES[0]]
    explained = explain_document(workspace.load(), NAMES[0])
    assert explained.next_step == "leave it alone", explained.reasons
    workspace.run()
    workspace.run()
    assert reads == [NAMES[0]], "what was settled is known"


def test_what_was_settled_is_written_with_the_next_chunk(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_just_now(workspace, monkeypatch, NAMES[0], "Another text on other tides.\n")
    monkeypatch.setattr(files, "RACY_NS", 0)
    workspace.run()
    workspace.write(NAMES[1], "Yet another text.\n")
    workspace.run()
    assert KEY not in pointer_of(workspace).checkpoint["docs"]
    assert state_of(workspace, NAMES[0])["mtime_ns"] == (workspace.docs / NAMES[0]).stat().st_mtime_ns
    reads = count_reads(monkeypatch)
    workspace.run()
    assert reads == []


def test_an_entry_ends_with_the_content_that_it_is_of(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_just_now(workspace, monkeypatch, NAMES[0], "Another text on other tides.\n")
    monkeypatch.setattr(files, "RACY_NS", 0)
    workspace.run()
    (workspace.docs / NAMES[0]).unlink()
    workspace.run()
    assert KEY not in pointer_of(workspace).checkpoint["docs"]
    workspace.write(NAMES[0], "Back again with another text.\n")
    workspace.run()
    assert "Back again" in str(workspace.open_snapshot().get_document(NAMES[0]))


def test_many_are_worth_a_snapshot(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "MAX_SETTLED", 2)
    before = pointer_of(workspace)
    for doc_id in NAMES[:2]:
        os.utime(workspace.docs / doc_id, ns=(5, 5))
    workspace.run()
    assert pointer_of(workspace).sequence == before.sequence
    os.utime(workspace.docs / NAMES[2], ns=(5, 5))
    workspace.run()
    after = pointer_of(workspace)
    assert after.sequence == before.sequence + 1 and KEY not in after.checkpoint["docs"]
    assert all(state_of(workspace, doc_id)["mtime_ns"] == 5 for doc_id in NAMES[:3])


def test_an_entry_does_not_count_for_the_content_of_an_earlier_snapshot(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pointer_of(workspace)
    edit_just_now(workspace, monkeypatch, NAMES[0], "Another text on other tides.\n")
    monkeypatch.setattr(files, "RACY_NS", 0)
    workspace.run()
    entries: Mapping[str, Any] = pointer_of(workspace).checkpoint["docs"][KEY]
    earlier = FeatureStore.open(str(workspace.store)).open_snapshot(first.sequence)
    old = next(row for row in earlier.source_states().to_pylist() if row["doc_id"] == NAMES[0])
    checkpoint = {"docs": {KEY: entries}}
    assert settled.settle_row(old, checkpoint) == old
    assert settled.settle_row(state_of(workspace, NAMES[0]), checkpoint)["mtime_ns"] is not None
