"""Rows of Parquet and JSON Lines files as documents: one row rewritten is one document, one bad line is one failure."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.errors import SourceContract
from lodestream.pipeline.config.sources import JsonLinesSource, ParquetSource
from lodestream.pipeline.sources import row_files
from lodestream.pipeline.sources.row_files import RowFiles
from tests.support.known import Follower

KINDS = {"parquet": ParquetSource, "jsonl": JsonLinesSource}
clock = iter(range(1_700_000_000, 1_800_000_000, 10))


def open_files(folder: Path, kind: str, *, prefix_ids: bool = False, **settings: Any) -> RowFiles:
    config = KINDS[kind].model_validate({"kind": kind, "path": str(folder), **settings})
    return RowFiles("rows", config, folder, prefix_ids=prefix_ids)


def write(path: Path, rows: Mapping[Any, str | None], **options: Any) -> None:
    """Writes a file with a time of its own, long ago."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(rows), "text": list(rows.values()), "x": [0] * len(rows)}), path, **options)
    else:
        path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows.items()))
    settle(path)


def settle(path: Path) -> None:
    time_s = next(clock)
    os.utime(path, (time_s, time_s))


@pytest.mark.parametrize("kind", KINDS)
def test_rewriting_one_row_reads_one_document(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / f"a.{kind}", tmp_path / "deep" / f"b.{kind}"
    rows: dict[Any, str | None] = {i: f"text {i}" for i in range(500)}
    write(path, rows)
    write(other, {"x": "näw", "y": None})
    follower = Follower(open_files(tmp_path, kind))
    follower.refresh()
    assert follower.texts == {**{str(i): text for i, text in rows.items()}, "x": "näw", "y": ""}
    assert not follower.refresh().upserts
    rows[250] = "rewritten"
    del rows[3]
    write(path, rows)
    changes = follower.refresh()
    assert follower.num_read == 1 and changes.num_seen == 499
    assert follower.texts == {**{str(i): text for i, text in rows.items()}, "x": "näw", "y": ""}
    other.unlink()
    follower.refresh()
    assert "x" not in follower.texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_moves_to_another_file_stays(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"a.{kind}", {1: "one", 2: "two"})
    write(tmp_path / f"b.{kind}", {3: "three"})
    follower = Follower(open_files(tmp_path, kind))
    follower.refresh()
    write(tmp_path / f"a.{kind}", {1: "one"})
    write(tmp_path / f"b.{kind}", {2: "two", 3: "three"})
    follower.refresh()
    assert follower.texts == {"1": "one", "2": "two", "3": "three"} and follower.num_read == 0
    write(tmp_path / f"b.{kind}", {3: "three"})
    follower.refresh()
    assert follower.texts == {"1": "one", "3": "three"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_in_two_files_counts_once_whatever_the_order_of_events(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"b.{kind}", {1: "of b"})
    follower = Follower(open_files(tmp_path, kind))
    follower.refresh()
    write(tmp_path / f"a.{kind}", {1: "of a"})
    follower.refresh()
    anew = Follower(open_files(tmp_path, kind))
    anew.refresh()
    assert follower.texts == anew.texts == {"1": "of a"}
    (failure,) = follower.failures.values()
    assert follower.failures == anew.failures and f"is that of a.{kind}:" in failure
    (tmp_path / f"a.{kind}").unlink()
    follower.refresh()
    assert follower.texts == {"1": "of b"} and not follower.failures


def test_bad_lines_fail_and_the_others_go_on(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"id": 1, "text": "first"}',
        b"not json",
        b'{"id": 2}',
        b'{"id": true, "text": "x"}',
        b'{"id": 3, "text": 5}',
        b"[1, 2]",
        b'{"id": 4, "text": "caf\xe9"}',
        b'{"id": 5, "text": "\\ud800"}',
        b"",
        b"[" * 100_000,
        b'{"id": 6, "text": "last"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    settle(path)
    follower = Follower(open_files(tmp_path, "jsonl"))
    follower.refresh()
    assert follower.texts == {"1": "first", "6": "last"}
    reasons = ["not JSON", "no member 'text'", "the id is 'True'", "text is int", "no object", "not UTF-8", "surrogate"]
    numbers = [2, 3, 4, 5, 6, 7, 8, 10]
    assert list(follower.failures) == sorted(f"a.jsonl:{number}" for number in numbers)
    for number, reason in zip(numbers, [*reasons, "JSON"], strict=True):
        assert reason in follower.failures[f"a.jsonl:{number}"]
    assert not follower.refresh().upserts
    path.write_bytes(path.read_bytes().replace(b"not json", b'{"id": 7, "text": "mended"}'))
    settle(path)
    follower.refresh()
    assert follower.texts["7"] == "mended" and "a.jsonl:2" not in follower.failures


def test_a_file_that_cannot_be_read_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, {1: "one", 2: "two"})
    write(tmp_path / "b.parquet", {3: "three"})
    follower = Follower(open_files(tmp_path, "parquet"))
    follower.refresh()
    body = path.read_bytes()
    path.write_bytes(body[: len(body) // 2])
    settle(path)
    write(tmp_path / "b.parquet", {3: "changed"})
    follower.refresh()
    assert follower.texts == {"1": "one", "2": "two", "3": "changed"}
    assert "cannot be read" in follower.failures["a.parquet"]
    path.write_bytes(body)
    settle(path)
    follower.refresh()
    assert not follower.failures and follower.texts["1"] == "one"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": [1], "body": ["x"]}, "no column text; there is id, body"),
        ({"id": [1], "text": [5]}, "the column text is of type int64"),
        ({"id": [1.5], "text": ["x"]}, "the column id is of type double"),
    ],
)
def test_a_file_without_the_columns_is_set_aside(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    path = tmp_path / "a.parquet"
    write(path, {1: "one"})
    follower = Follower(open_files(tmp_path, "parquet"))
    follower.refresh()
    pq.write_table(pa.table(columns), path)
    settle(path)
    follower.refresh()
    assert follower.texts == {"1": "one"} and reason in follower.failures["a.parquet"]


def test_parquet_of_several_row_groups_and_types(tmp_path: Path) -> None:
    texts = pa.array([f"text {i % 3}" for i in range(10)]).dictionary_encode()
    table = pa.table({"key": pa.array(range(10), pa.int16()), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    settle(tmp_path / "a.parquet")
    source = open_files(tmp_path, "parquet", id_column="key", text_column="body", prefix_ids=True)
    follower = Follower(source)
    follower.refresh()
    assert follower.texts == {f"rows/{i}": f"text {i % 3}" for i in range(10)}
    pq.write_table(pa.table({"key": pa.array([None, 1], pa.int16()), "body": ["x", "y"]}), tmp_path / "a.parquet")
    settle(tmp_path / "a.parquet")
    follower.refresh()
    assert follower.texts == {"rows/1": "y"} and "no id" in follower.failures["rows/a.parquet:0.0"]


def test_a_file_written_just_now_is_scanned_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, {1: "one"})
    follower = Follower(open_files(tmp_path, "jsonl"))
    os.utime(path)
    follower.refresh()
    assert follower.refresh().num_seen == 1
    settle(path)
    follower.refresh()
    assert follower.refresh().num_seen == 0


def test_a_row_that_was_rewritten_before_it_was_read_waits_for_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, {1: "one", 2: "two"})
    source = open_files(tmp_path, "parquet")
    candidates = source.changes(None, Follower(source).known).upserts
    write(path, {2: "two", 1: "one"})
    reader = pickle.loads(pickle.dumps(source.reader()))
    assert all(body.is_gone for body in reader.read(candidates))
    path.unlink()
    write(tmp_path / "b.parquet", {5: "five"})
    candidates = source.changes(None, Follower(source).known).upserts
    (tmp_path / "b.parquet").unlink()
    assert [body.is_gone for body in reader.read(candidates)] == [True]


def test_with_many_files_a_change_of_one_has_all_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_FILES_IN_CURSOR", 2)
    for number in range(4):
        write(tmp_path / f"{number}.jsonl", {number: "x"})
    follower = Follower(open_files(tmp_path, "jsonl"))
    follower.refresh()
    assert follower.cursor is not None and not follower.cursor["files"]
    assert follower.refresh().num_seen == 0
    write(tmp_path / "0.jsonl", {0: "y"})
    assert follower.refresh().num_seen == 4 and follower.num_read == 1


def test_documents_to_try_again_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {1: "one", 2: "\x01" * 50})
    follower = Follower(open_files(tmp_path, "jsonl"))
    follower.refresh()
    assert list(follower.failures) == ["2"]
    assert [candidate.doc_id for candidate in follower.refresh(retry={"2", "77"}).upserts] == ["2"]


def test_other_columns_are_another_source(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {1: "one"})
    plain = open_files(tmp_path, "parquet")
    assert plain.incarnation() != open_files(tmp_path, "parquet", text_column="x").incarnation()
    assert plain.incarnation() == open_files(tmp_path, "parquet", max_document_bytes=5).incarnation()


def test_a_missing_or_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceContract, match="does not exist"):
        open_files(tmp_path / "none", "parquet").check()
    assert open_files(tmp_path, "parquet").check().level == "warn"
    source = open_files(tmp_path, "parquet")
    assert source.changes(None, Follower(source).known).listed == frozenset()


LINES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["one", "two", "bad\x01"])), max_size=4)
EVENTS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.none() | LINES), min_size=2, max_size=8)


@settings(max_examples=60)
@given(events=EVENTS)
def test_following_gives_what_a_first_look_gives(events: list[tuple[str, list[tuple[int, str]] | None]]) -> None:
    """Files come, change and go, with ids that come twice and rows that fail: whatever the order, the end is the same.

    But for the texts of rows that fail now: the last ones that worked stay.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        follower = Follower(open_files(folder, "jsonl"))
        for file, lines in events:
            path = folder / f"{file}.jsonl"
            if lines is None:
                path.unlink(missing_ok=True)
            else:
                rows = [json.dumps({"id": i, "text": text}) if i < 4 else "no row" for i, text in lines]
                path.write_text("\n".join(rows))
                settle(path)
            follower.refresh()
            anew = Follower(open_files(folder, "jsonl"))
            anew.refresh()
            working = {row_id: text for row_id, text in follower.texts.items() if row_id not in follower.failures}
            assert (working, follower.failures) == (anew.texts, anew.failures)
