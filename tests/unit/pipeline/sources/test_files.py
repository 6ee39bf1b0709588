"""A folder as a source: what counts as changed, what a listing proves, and reads that notice a writer."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import FilesSource
from lodestream.pipeline.sources import files
from lodestream.pipeline.sources.files import FilesFolder
from lodestream.pipeline.sources.protocol import KnownDocument, ReadBody

OLD_S = 1_700_000_000


class Known:
    """Documents that are known, as a plain mapping."""

    def __init__(self, documents: Mapping[str, KnownDocument] | None = None) -> None:
        self.documents = documents or {}

    def load(self) -> Mapping[str, KnownDocument]:
        return self.documents

    def find(self, doc_ids: Collection[str]) -> Mapping[str, KnownDocument]:
        return {doc_id: self.documents[doc_id] for doc_id in doc_ids if doc_id in self.documents}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.md", "b.txt", "deep/c.rst", "other.bin"):
        write(tmp_path / name, f"text of {name}")
    return tmp_path


def write(path: Path, text: str, *, mtime_s: float = OLD_S) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (mtime_s, mtime_s))


def open_folder(path: Path, *, prefix_ids: bool = False, **settings: object) -> FilesFolder:
    config = FilesSource.model_validate({"path": str(path), **settings})
    return FilesFolder("docs", config, Path("/"), prefix_ids=prefix_ids)


def read_all(source: FilesFolder) -> dict[str, ReadBody]:
    candidates = source.changes(None, Known()).upserts
    return {c.doc_id: body for c, body in zip(candidates, source.reader().read(candidates), strict=True)}


def remember(source: FilesFolder) -> Known:
    """What the store would hold after all of it was read."""
    return Known(
        {
            doc_id: KnownDocument(state=body.state, content_hash=body.content_hash)
            for doc_id, body in read_all(source).items()
        }
    )


def changed(source: FilesFolder, known: Known, **options: Collection[str]) -> list[str]:
    return [candidate.doc_id for candidate in source.changes({}, known, **options).upserts]


def test_first_listing_names_everything(folder: Path) -> None:
    found = open_folder(folder).changes(None, Known())
    assert [c.doc_id for c in found.upserts] == ["a.md", "b.txt", "deep/c.rst"]
    assert found.listed == {"a.md", "b.txt", "deep/c.rst"}
    assert found.num_seen == 3
    prefixed = open_folder(folder, prefix_ids=True).changes(None, Known())
    assert prefixed.listed == {"docs/a.md", "docs/b.txt", "docs/deep/c.rst"}


def test_known_states_do_not_count_without_a_cursor(folder: Path) -> None:
    source = open_folder(folder)
    assert len(source.changes(None, remember(source)).upserts) == 3


def test_unchanged_files_are_listed_and_not_named(folder: Path) -> None:
    source = open_folder(folder)
    found = source.changes({}, remember(source))
    assert (len(found.upserts), found.num_seen, len(found.listed or ())) == (0, 3, 3)


def test_bodies_are_hashed_and_decoded(folder: Path) -> None:
    write(folder / "a.md", "\ufeffwith a mark")
    body = read_all(open_folder(folder))["a.md"]
    assert (body.text, body.text_format, body.failure) == ("with a mark", "markdown", None)
    assert body.content_hash == hashlib.sha256((folder / "a.md").read_bytes()).digest()


def test_older_time_is_a_change(folder: Path) -> None:
    source = open_folder(folder)
    known = remember(source)
    write(folder / "a.md", "TEXT OF a.md", mtime_s=OLD_S - 1000)
    assert changed(source, known) == ["a.md"]


def test_same_time_and_size_with_other_bytes_is_a_change(folder: Path) -> None:
    source = open_folder(folder)
    known = remember(source)
    write(folder / "a.md", "TEXT OF a.md")
    assert changed(source, known) == ["a.md"]


def test_file_replaced_by_another_is_a_change(folder: Path) -> None:
    source = open_folder(folder)
    known = remember(source)
    write(folder / "new", "TEXT OF b.md")
    (folder / "new").rename(folder / "b.txt")
    assert changed(source, known) == ["b.txt"]


def test_file_written_just_now_is_read_once_more(folder: Path) -> None:
    source = open_folder(folder)
    write(folder / "a.md", "fresh", mtime_s=time.time())
    known = remember(source)
    assert changed(source, known) == ["a.md"]
    os.utime(folder / "a.md", (OLD_S, OLD_S))
    assert changed(source, remember(source)) == []


def test_retry_names_what_has_not_changed(folder: Path) -> None:
    source = open_folder(folder)
    known = remember(source)
    assert changed(source, known, retry={"b.txt", "gone.md"}) == ["b.txt"]


def test_future_times_are_counted(folder: Path) -> None:
    write(folder / "a.md", "from tomorrow", mtime_s=time.time() + 86400)
    assert open_folder(folder).changes(None, Known()).observations.num_future == 1


def test_write_during_the_read_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.md"
    calls = []

    def fstat(fd: int) -> os.stat_result:
        calls.append(fd)
        if len(calls) == 2:  # after the first read
            write(path, "longer than it was before")
        return os.stat(fd)

    monkeypatch.setattr(files.os, "fstat", fstat)
    source = open_folder(folder, include=["a.md"])
    body = read_all(source)["a.md"]
    assert body.text == "longer than it was before"
    assert body.state.mtime_ns is not None


def test_file_that_never_rests_is_read_again_next_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.md"

    def fstat(fd: int) -> os.stat_result:
        with path.open("a") as file:
            file.write("more")
        os.utime(path, (OLD_S, OLD_S))
        return os.stat(fd)

    source = open_folder(folder, include=["a.md"])
    monkeypatch.setattr(files.os, "fstat", fstat)
    known = remember(source)
    monkeypatch.undo()
    assert known.documents["a.md"].state.mtime_ns is None
    assert changed(source, known) == ["a.md"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\x00", "not utf-16"),
        (b"a\0b", "NUL byte at offset 1"),
        (b"caf\xe9", "0xe9 at offset 3"),
        (b"x" * 99, "99"),
    ],
)
def test_unusable_files_fail_with_the_reason(folder: Path, content: bytes, reason: str) -> None:
    (folder / "a.md").write_bytes(content)
    source = open_folder(folder, max_document_bytes="90B")
    body = read_all(source)["a.md"]
    assert body.text is None and reason in (body.failure or "")
    assert read_all(source)["a.md"].content_hash == body.content_hash


def test_a_page_is_read_as_text_and_again_where_its_reading_changes(folder: Path) -> None:
    (folder / "page.html").write_bytes(b'<h1 id="x">Head</h1><p>caf\xe9 <a href="y">link</a></p>')
    os.utime(folder / "page.html", (OLD_S, OLD_S))
    body = read_all(open_folder(folder))["page.html"]
    assert "sources.docs.encoding" in (body.failure or "")
    source = open_folder(folder, encoding="windows-1252")
    body = read_all(source)["page.html"]
    assert (body.text, body.text_format) == ("# Head\n\ncafé link\n", "markdown")
    known = remember(source)
    assert [c.doc_id for c in source.changes({}, known).upserts] == []
    other = open_folder(folder, encoding="iso-8859-15")
    assert [c.doc_id for c in other.changes({}, known).upserts] == ["a.md", "b.txt", "deep/c.rst", "page.html"]
    assert read_all(other)["page.html"].content_hash != body.content_hash


def test_vanished_file_is_gone_and_no_failure(folder: Path) -> None:
    source = open_folder(folder)
    candidates = source.changes(None, Known()).upserts
    (folder / "a.md").unlink()
    bodies = list(source.reader().read(candidates))
    assert [(body.is_gone, body.failure) for body in bodies] == [(True, None), (False, None), (False, None)]


def test_reader_is_picklable_and_small(folder: Path) -> None:
    source = open_folder(folder)
    candidates = source.changes(None, Known()).upserts
    assert len(pickle.dumps(source.reader())) < 500
    copied = pickle.loads(pickle.dumps(source.reader()))
    assert [body.text for body in copied.read(candidates)] == ["text of a.md", "text of b.txt", "text of deep/c.rst"]


def test_another_folder_under_the_name_is_another_incarnation(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    source = open_folder(root)
    before = source.incarnation()
    assert open_folder(root).incarnation() == before
    root.rename(tmp_path / "old")
    root.mkdir()
    assert source.incarnation() != before


def test_missing_folder_is_an_error_and_no_empty_source(tmp_path: Path) -> None:
    source = open_folder(tmp_path / "missing")
    for ask in (source.incarnation, source.check, lambda: source.changes({}, Known())):
        with pytest.raises(SourceContract, match="does not exist"):
            ask()


def test_candidates_carry_what_a_state_is_compared_with(folder: Path) -> None:
    candidate = open_folder(folder).changes(None, Known()).upserts[0]
    info = (folder / "a.md").stat()
    assert candidate.state == replace(candidate.state, size_bytes=info.st_size, object_id=str(info.st_ino))
    assert candidate.state.mtime_ns == OLD_S * 10**9


def test_other_patterns_choose_among_known_files_too(folder: Path) -> None:
    wide = open_folder(folder)
    first = wide.changes(None, Known())
    known = remember(wide)
    assert wide.changes(first.cursor, known).listed == {"a.md", "b.txt", "deep/c.rst"}
    narrow = open_folder(folder, include=["**/*.md", "**/*.rst"], exclude=["deep/"])
    assert narrow.changes(first.cursor, known).listed == {"a.md"}


def test_folder_at_the_root_of_a_path_with_a_slash(folder: Path) -> None:
    assert open_folder(Path(f"{folder}/")).changes(None, Known()).listed == {"a.md", "b.txt", "deep/c.rst"}
