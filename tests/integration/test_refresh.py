"""What a refresh takes for changed, moved and deleted, what it keeps of a killed one, and what an empty one costs."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import MassDeletionRefused, SourceContract
from lodestream.pipeline import states
from lodestream.pipeline.report import RunReport
from lodestream.pipeline.sources.files import FileReader
from lodestream.pipeline.status import read_status
from lodestream.storage import steps
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.workspace import WRITTEN_NS, Workspace, assert_equal_stores, read_store, short_topics

DOCUMENTS = short_topics(8)
NAMES = list(DOCUMENTS)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.create(tmp_path / "work", DOCUMENTS)
    made.run()
    return made


def tally(report: RunReport) -> dict[str, int]:
    documents: dict[str, int] = report.as_dict()["documents"]
    return {name: number for name, number in documents.items() if number}


def rebuild(workspace: Workspace, *settings: str) -> Snapshot:
    """The same documents in a store of their own."""
    replace(workspace, settings=(*workspace.settings, "store.uri=rebuilt", *settings)).run()
    return FeatureStore.open(str(workspace.root / "rebuilt")).open_snapshot()


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(reader: FileReader, candidates: Sequence[Any]) -> None:
        raise AssertionError(f"read {[candidate.doc_id for candidate in candidates]}")

    monkeypatch.setattr(FileReader, "read", read)


def state_of(workspace: Workspace, doc_id: str) -> dict[str, Any]:
    rows = workspace.open_snapshot().source_states().to_pylist()
    return next(row for row in rows if row["doc_id"] == doc_id)


def test_unchanged_corpus_is_not_read_and_nothing_is_published(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = FeatureStore.open(str(workspace.store)).pointer()
    forbid_reading(monkeypatch)
    report = workspace.run()
    after = FeatureStore.open(str(workspace.store)).pointer()
    assert tally(report) == {"seen": 8, "same": 8}
    assert (after.sequence, after.tables, after.published_at) == (before.sequence, before.tables, before.published_at)
    assert after.checked_at is not None and before.checked_at is not None and after.checked_at > before.checked_at
    assert after.checkpoint["docs"]["watermark"] > before.checkpoint["docs"]["watermark"]


def test_only_files_with_another_state_are_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.write(NAMES[0], f"{DOCUMENTS[NAMES[0]]}\n\nOne more paragraph.\n")
    opened = []
    read = FileReader.read

    def note(reader: FileReader, candidates: Sequence[Any]) -> Any:
        opened.extend(candidate.doc_id for candidate in candidates)
        return read(reader, candidates)

    monkeypatch.setattr(FileReader, "read", note)
    assert tally(workspace.run()) == {"seen": 8, "same": 7, "changed": 1}
    assert opened == [NAMES[0]]


def test_touched_file_is_read_once_and_then_left_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(workspace.docs / NAMES[0], ns=(WRITTEN_NS + 5, WRITTEN_NS + 5))
    before = read_store(workspace.open_snapshot())
    assert tally(workspace.run()) == {"seen": 8, "same": 8}
    assert read_store(workspace.open_snapshot()) == before
    forbid_reading(monkeypatch)
    assert tally(workspace.run()) == {"seen": 8, "same": 8}


def test_file_restored_with_an_older_time_is_a_change(workspace: Workspace) -> None:
    path = workspace.write(NAMES[0], "An older version.\n")
    os.utime(path, ns=(WRITTEN_NS - 10**15, WRITTEN_NS - 10**15))
    assert tally(workspace.run()) == {"seen": 8, "same": 7, "changed": 1}


def test_second_write_within_the_grain_of_the_clock_is_seen(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes of one size that leave the same time, as on a file system with a coarse clock."""
    path = workspace.docs / NAMES[0]
    now_ns = time.time_ns()
    fresh = os.stat

    path.write_text("aaaa\n")
    os.utime(path, ns=(now_ns, now_ns))
    assert tally(workspace.run()) == {"seen": 8, "same": 7, "changed": 1}
    assert state_of(workspace, NAMES[0])["mtime_ns"] is None
    info = fresh(path)
    path.write_text("bbbb\n")
    os.utime(path, ns=(now_ns, now_ns))
    assert (fresh(path).st_size, fresh(path).st_mtime_ns) == (info.st_size, info.st_mtime_ns)
    assert tally(workspace.run()) == {"seen": 8, "same": 7, "changed": 1}
    assert (workspace.open_snapshot().get_document(NAMES[0]) or {})["text"] == "bbbb\n"


def test_renamed_document_is_moved_and_not_even_cut(workspace: Workspace) -> None:
    before = workspace.open_snapshot().get_features(NAMES[2])
    (workspace.docs / NAMES[2]).rename(workspace.docs / "moved.rst")
    report = workspace.run()
    assert tally(report) == {"seen": 8, "same": 7, "moved": 1}
    assert report.counts.segments_total == 0
    snapshot = workspace.open_snapshot()
    assert snapshot.get_document(NAMES[2]) is None and not snapshot.get_features(NAMES[2]).num_rows
    after = snapshot.get_features("moved.rst")
    kept = ["granularity", "ordinal", "codes", "scale", "computed_at", "fingerprint"]
    assert after.select(kept).equals(before.select(kept))
    assert_equal_stores(snapshot, rebuild(workspace))
    assert tally(workspace.run()) == {"seen": 8, "same": 8}


def test_renamed_folder_is_no_mass_deletion(tmp_path: Path) -> None:
    texts = {f"old/{number}.md": f"Note {number} on tides.\n" for number in range(60)}
    workspace = Workspace.create(tmp_path / "work", texts)
    workspace.run()
    (workspace.docs / "old").rename(workspace.docs / "new")
    report = workspace.run()
    assert tally(report) == {"seen": 60, "moved": 60}
    assert_equal_stores(workspace.open_snapshot(), rebuild(workspace))


def test_other_suffix_is_no_move(workspace: Workspace) -> None:
    """The same bytes under another suffix are another format: cut anew."""
    (workspace.docs / NAMES[2]).rename(workspace.docs / "moved.md")
    report = workspace.run()
    assert tally(report) == {"seen": 8, "same": 7, "new": 1, "deleted": 1}
    assert_equal_stores(workspace.open_snapshot(), rebuild(workspace))


def test_one_document_moved_to_two_names(workspace: Workspace) -> None:
    path = workspace.docs / NAMES[1]
    workspace.write("one.rst", path.read_text())
    path.rename(workspace.docs / "two.rst")
    assert tally(workspace.run()) == {"seen": 9, "same": 7, "moved": 2}
    assert_equal_stores(workspace.open_snapshot(), rebuild(workspace))


def test_half_of_many_documents_gone_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    texts = {f"{number}.md": f"Note {number} on tides.\n" for number in range(102)}
    workspace = Workspace.create(tmp_path / "work", texts)
    workspace.run()
    for number in range(51):
        (workspace.docs / f"{number}.md").unlink()
    before = FeatureStore.open(str(workspace.store)).pointer()
    with pytest.raises(MassDeletionRefused, match="51 of 102 documents"):
        workspace.run()
    after = FeatureStore.open(str(workspace.store)).pointer()
    assert (after.epoch, after.tables, after.checkpoint) == (before.epoch, before.tables, before.checkpoint)
    workspace.write("50.md", "Note 50 on tides.\n")
    assert tally(workspace.run()) == {"seen": 52, "same": 52, "deleted": 50}


def test_another_folder_under_the_same_name_is_compared_in_full(workspace: Workspace) -> None:
    """Copied back from a backup: every file has the bytes it had, and nothing is taken on trust."""
    workspace.docs.rename(workspace.root / "old")
    for name, text in DOCUMENTS.items():
        workspace.write(name, text)
    read = []
    report = workspace.run(show_note=read.append)
    assert tally(report) == {"seen": 8, "same": 8}
    assert any("another one than at the last run" in sentence for sentence in read)
    again: list[str] = []
    assert tally(workspace.run(show_note=again.append)) == {"seen": 8, "same": 8}
    assert again == []


def test_source_that_is_configured_no_more_is_deleted(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", DOCUMENTS)
    (workspace.root / "more").mkdir()
    (workspace.root / "more" / "a.md").write_text("A second source.\n")
    assert tally(workspace.run("sources.more.path=more")) == {"seen": 9, "new": 9}
    # With one source the names have no prefix: the documents of the other one are moved.
    report = workspace.run()
    assert tally(report) == {"seen": 8, "moved": 8, "deleted": 1}
    assert_equal_stores(workspace.open_snapshot(), rebuild(workspace))


def test_failed_document_waits_longer_each_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.write(NAMES[0], b"\xff\xff broken")
    workspace.run()
    first = state_of(workspace, NAMES[0])
    assert (first["quarantine_attempts"], "UTF" in first["quarantine_reason"]) == (1, True)
    assert first["retry_at"] - first["stated_at"] == timedelta(minutes=5)
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        assert tally(workspace.run()) == {"seen": 8, "same": 7, "quarantined": 1}
    report = workspace.run(retry=[NAMES[0]])
    assert tally(report) == {"seen": 8, "same": 7, "quarantined": 1}
    second = state_of(workspace, NAMES[0])
    assert (second["quarantine_attempts"], second["first_failed_at"]) == (2, first["first_failed_at"])
    assert second["retry_at"] - second["stated_at"] == timedelta(minutes=10)


def test_failed_document_is_tried_again_when_its_time_has_come(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.docs / NAMES[0]
    (workspace.docs / "x.md").mkdir()
    workspace.write(NAMES[0], b"\xff\xff broken")
    workspace.run()
    assert path.exists()
    later = datetime.now(UTC) + timedelta(minutes=6)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return later

    monkeypatch.setattr("lodestream.pipeline.plan.datetime", Later)
    assert tally(workspace.run()) == {"seen": 8, "same": 7, "quarantined": 1}
    assert state_of(workspace, NAMES[0])["quarantine_attempts"] == 2


def test_waits_double_up_to_a_day() -> None:
    minutes = [states.wait_before_retry(attempts).total_seconds() / 60 for attempts in (1, 2, 3, 9, 10, 1000)]
    assert minutes == [5, 10, 20, 1280, 1440, 1440]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_burst_is_cut_into_commits_and_a_killed_refresh_loses_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        workspace.write(f"burst/{number:02}.md", f"Note {number} on the tides of the coast.\n")
    workspace = replace(workspace, settings=(*workspace.settings, "run.chunk_documents=10"))
    staged: list[str] = []

    def reach(step: str) -> None:
        if step == "chunk.staged":
            staged.append(step)
        if step == "chunk.features_committed" and len(staged) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(steps, "reach", reach)
        with pytest.raises(Killed):
            workspace.run()
    assert workspace.open_snapshot().count_documents() == 8
    report = workspace.run()
    assert tally(report) == {"seen": 38, "same": 8, "new": 10, "resumed": 20}
    assert_equal_stores(workspace.open_snapshot(), rebuild(workspace))
    assert tally(workspace.run()) == {"seen": 38, "same": 38}


def test_documents_that_change_after_a_kill_are_computed_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.md", "b.md", "c.md"):
        workspace.write(name, f"First version of {name}.\n")
    (workspace.docs / NAMES[0]).rename(workspace.docs / "moved.rst")
    workspace = replace(workspace, settings=(*workspace.settings, "run.chunk_documents=2"))

    def reach(step: str) -> None:
        if step == "publish.synced":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(steps, "reach", reach)
        with pytest.raises(Killed):
            workspace.run()
    workspace.write("a.md", "Second version of a.md, longer.\n")
    (workspace.docs / "b.md").unlink()
    report = workspace.run()
    assert tally(report) == {"seen": 10, "same": 7, "new": 1, "resumed": 2, "deleted": 1}
    assert_equal_stores(workspace.open_snapshot(), rebuild(workspace))


def test_vanished_after_it_was_listed_is_left_for_the_next_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.write("late.md", "Here for a moment.\n")
    read = FileReader.read

    def vanish(reader: FileReader, candidates: Sequence[Any]) -> Any:
        path.unlink(missing_ok=True)
        return read(reader, candidates)

    monkeypatch.setattr(FileReader, "read", vanish)
    assert tally(workspace.run()) == {"seen": 9, "same": 8}
    assert tally(workspace.run()) == {"seen": 8, "same": 8}


def test_failed_run_leaves_its_reason_and_a_good_one_takes_it_away(workspace: Workspace) -> None:
    before = FeatureStore.open(str(workspace.store)).pointer()
    workspace.docs.rename(workspace.root / "away")
    for _ in range(2):
        with pytest.raises(SourceContract):
            workspace.run()
    status = read_status(workspace.load())
    assert status.health == "degraded"
    assert "the last 2 runs failed" in status.reason and "does not exist" in status.reason
    after = FeatureStore.open(str(workspace.store)).pointer()
    assert (after.sequence, after.tables, after.checkpoint) == (before.sequence, before.tables, before.checkpoint)
    (workspace.root / "away").rename(workspace.docs)
    assert tally(workspace.run()) == {"seen": 8, "same": 8}
    assert read_status(workspace.load()).health == "healthy"


def test_readers_see_whole_snapshots_while_refreshes_publish(workspace: Workspace) -> None:
    """Every version of the two documents says its number; a reader that sees two numbers saw a mixture."""
    numbers: list[int] = []
    ends = threading.Event()
    store = FeatureStore.open(str(workspace.store))

    def write(number: int) -> None:
        for name in ("one.md", "two.md"):
            workspace.write(name, f"Version {number} of a note on tides.\n")

    def read() -> None:
        while not ends.is_set():
            snapshot = store.open_snapshot()
            found = set()
            for name in ("one.md", "two.md"):
                document = snapshot.get_document(name)
                assert document is not None
                rows = snapshot.get_features(name, "document")
                assert rows.column("char_end")[0].as_py() == len(document["text"])
                found.add(int(document["text"].split()[1]))
            assert len(found) == 1, found
            numbers.append(found.pop())

    write(0)
    workspace.run()
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for number in (10, 1000, 100000):
                write(number)
                workspace.run("run.chunk_documents=1")
        finally:
            ends.set()
        for reader in readers:
            reader.result(timeout=60)
    assert len(set(numbers)) > 1


def test_retries_are_asked_of_the_source_that_has_the_document(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", {"a.md": "A note.\n", "b.md": b"\x00\x01".decode()})
    settings = ("sources.more.kind=sqlite", "sources.more.path=notes.db", "sources.more.table=notes")
    connection = sqlite3.connect(workspace.root / "notes.db")
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    connection.execute("INSERT INTO notes VALUES (1, 'A row on tides.')")
    connection.commit()
    connection.close()
    report = workspace.run(*settings)
    assert tally(report) == {"seen": 3, "new": 2, "quarantined": 1}
    again = workspace.run(*settings, retry=["docs/b.md"])
    assert tally(again)["quarantined"] == 1 and state_of(workspace, "docs/b.md")["quarantine_attempts"] == 2


def test_many_documents_of_a_source_that_is_left_out_are_guarded(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", {"a.md": "One note.\n"})
    (workspace.root / "more").mkdir()
    for number in range(51):
        (workspace.root / "more" / f"{number}.md").write_text(f"Note {number}.\n")
    workspace.run("sources.more.path=more", "sources.third.path=docs")
    with pytest.raises(MassDeletionRefused, match="51 documents are of sources that are not configured any more"):
        workspace.run("sources.third.path=docs")
    assert tally(workspace.run("sources.third.path=docs", allow_mass_delete=True))["deleted"] == 51
