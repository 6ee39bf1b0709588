"""Runs end to end in one process: what is computed, what is reused, and that neither changes what is stored."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from lodestream.errors import MassDeletionRefused, QuarantineShareExceeded, StoreNotFound
from lodestream.pipeline.report import RunReport
from tests.support.workspace import Workspace, assert_equal_stores, read_features, read_store, short_topics

DOCUMENTS = short_topics(12)
NAMES = list(DOCUMENTS)
# One paragraph of its own segment: longer than segment.target_tokens.
NEW_PARAGRAPH = (
    "The lighthouse keeper wrote down the height of every tide for forty years, first in pencil and later in ink, and "
    "when the archive was opened at last the numbers turned out to be the longest unbroken record of that coast."
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.create(tmp_path / "work", DOCUMENTS)
    made.run()
    return made


def tally(report: RunReport) -> dict[str, int]:
    """Documents by what became of them, those with a number other than 0."""
    documents: dict[str, int] = report.as_dict()["documents"]
    return {name: number for name, number in documents.items() if number}


def encoded(report: RunReport) -> int:
    return report.counts.segments_encoded


def test_backfill_publishes_every_document(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", DOCUMENTS)
    with pytest.raises(StoreNotFound):
        workspace.open_snapshot()
    report = workspace.run()
    assert (report.kind, report.executor) == ("backfill", "local")
    assert (report.snapshot_before, report.snapshot_after) == (None, 1)
    assert tally(report) == {"seen": 12, "new": 12}
    assert 0 < encoded(report) <= report.counts.segments_total
    assert report.counts.tokens_encoded <= report.counts.tokens_total
    assert report.counts.tokens_overhead >= 2 * encoded(report)
    snapshot = workspace.open_snapshot()
    assert snapshot.count_documents() == 12
    for name, text in DOCUMENTS.items():
        document = snapshot.get_document(name)
        assert document is not None and document["text"] == text
        rows = snapshot.get_features(name)
        levels = rows.column("granularity").to_pylist()
        assert {"paragraph", "topic", "document"} <= set(levels)
        assert document["num_paragraphs"] == levels.count("paragraph")
        assert document["num_sentences"] == levels.count("sentence")
        assert document["num_topics"] == levels.count("topic")
    documents = [snapshot.get_document(name) or {} for name in NAMES]
    assert sum(d["num_tokens"] for d in documents) == report.counts.tokens_total
    assert sum(d["num_segments"] for d in documents) == report.counts.segments_total


def test_second_run_encodes_nothing_and_publishes_nothing(workspace: Workspace) -> None:
    before = read_store(workspace.open_snapshot())
    report = workspace.run()
    assert report.kind == "refresh"
    assert tally(report) == {"seen": 12, "same": 12}
    assert (encoded(report), report.counts.tokens_total) == (0, 0)
    assert (report.snapshot_before, report.snapshot_after) == (1, 1)
    assert read_store(workspace.open_snapshot()) == before


def test_inserted_paragraph_encodes_itself_and_its_neighbours_at_most(workspace: Workspace) -> None:
    name = max(DOCUMENTS, key=lambda n: len(DOCUMENTS[n]))
    parts = DOCUMENTS[name].split("\n\n")
    middle = len(parts) // 2
    workspace.write(name, "\n\n".join([*parts[:middle], NEW_PARAGRAPH, *parts[middle:]]))
    report = workspace.run()
    assert tally(report) == {"seen": 12, "changed": 1, "same": 11}
    assert 1 <= encoded(report) <= 3 < report.counts.segments_total
    assert report.snapshot_after == 2


def test_rows_that_are_reused_keep_their_time(workspace: Workspace) -> None:
    name = NAMES[0]
    columns = ["granularity", "fingerprint", "computed_at", "codes"]
    before = workspace.open_snapshot().get_features(name).select(columns).to_pylist()
    workspace.write(name, f"{DOCUMENTS[name]}\n\n{NEW_PARAGRAPH}\n")
    workspace.run()
    after = workspace.open_snapshot().get_features(name).select(columns).to_pylist()
    known = {row["fingerprint"] for row in before}
    reused = [row for row in after if row["fingerprint"] in known]
    assert reused and len(reused) < len(after)
    assert all(row in before for row in reused)


def test_a_paragraph_that_is_no_longer_cut_into_sentences_takes_over_its_only_sentence(tmp_path: Path) -> None:
    """The paragraph's own row was made of the sentence's codes: taken over in its place, it was rounded twice."""
    text = "The tide rises twice a never It falls twice a day as never and nobody has to ask it to."
    workspace = Workspace.create(tmp_path / "work", {"a.md": text})
    workspace.run()
    workspace.write("a.md", text.swapcase())  # the same tokens, a lower density
    assert encoded(workspace.run()) == 0
    levels = [row["granularity"] for row in read_features(workspace.open_snapshot())]
    assert levels.count("paragraph") == 1 and "sentence" not in levels
    workspace.run("store.uri=rebuilt")
    assert_equal_stores(workspace.open_snapshot(), workspace.open_store("rebuilt"))


def test_deleted_document_vanishes_with_all_its_rows(workspace: Workspace) -> None:
    (workspace.docs / NAMES[3]).unlink()
    report = workspace.run()
    assert tally(report) == {"seen": 11, "same": 11, "deleted": 1}
    assert encoded(report) == 0
    snapshot = workspace.open_snapshot()
    assert snapshot.get_document(NAMES[3]) is None
    assert NAMES[3] not in {row["doc_id"] for row in read_features(snapshot)}


def test_copy_of_a_document_is_not_encoded_again(workspace: Workspace) -> None:
    workspace.write("copy.rst", DOCUMENTS[NAMES[5]])
    report = workspace.run()
    assert tally(report) == {"seen": 13, "same": 12, "new": 1}
    assert encoded(report) == 0 < report.counts.segments_total


def test_paragraph_that_moves_to_an_earlier_chunk_is_not_encoded_again(tmp_path: Path) -> None:
    """From one document into another of the same run, whichever of the two is written first."""
    paragraph = f"{NEW_PARAGRAPH}\n"
    workspace = Workspace.create(
        tmp_path / "work", {"a.md": f"# A\n\n{paragraph}", "b.md": DOCUMENTS[NAMES[0]]}, "run.chunk_documents=1"
    )
    workspace.run()
    workspace.write("a.md", DOCUMENTS[NAMES[0]])
    workspace.write("b.md", f"# A\n\n{paragraph}")
    report = workspace.run()
    assert tally(report) == {"seen": 2, "changed": 2}
    assert encoded(report) == 0


def test_equal_documents_are_encoded_once(tmp_path: Path) -> None:
    text = DOCUMENTS[NAMES[1]]
    alone = Workspace.create(tmp_path / "alone", {"a.rst": text}).run()
    twins = Workspace.create(tmp_path / "twins", {"a.rst": text, "b.rst": text, "deep/c.rst": text}).run()
    assert encoded(twins) == encoded(alone) > 0
    assert twins.counts.segments_total == 3 * alone.counts.segments_total
    chunks = Workspace.create(tmp_path / "chunks", {"a.rst": text, "b.rst": text}, "run.chunk_documents=1").run()
    assert encoded(chunks) == encoded(alone)


def test_touched_document_is_the_same(workspace: Workspace) -> None:
    path = workspace.docs / NAMES[0]
    path.write_bytes(path.read_bytes())
    assert tally(workspace.run()) == {"seen": 12, "same": 12}


@pytest.mark.parametrize("seed", [1, 2])
def test_incremental_equals_full_rebuild_after_random_edits(tmp_path: Path, seed: int) -> None:
    workspace = Workspace.create(tmp_path / "work", DOCUMENTS, "run.chunk_documents=3")
    workspace.run()
    pick = random.Random(seed)
    shared = [part for text in DOCUMENTS.values() for part in text.split("\n\n") if part.strip()]
    saved = 0
    for step in range(5):
        for _ in range(3):
            _edit(workspace, pick, shared, step)
        report = workspace.run()
        saved += report.counts.segments_total - encoded(report)
    assert saved > 0
    rebuilt = replace(workspace, settings=(*workspace.settings, "store.uri=rebuilt"))
    rebuilt.run()
    fresh = Workspace(root=workspace.root)
    assert_equal_stores(fresh.open_snapshot(), open_rebuilt(workspace))


def open_rebuilt(workspace: Workspace):  # type: ignore[no-untyped-def]
    from lodestream.storage.store import FeatureStore

    return FeatureStore.open(str(workspace.root / "rebuilt")).open_snapshot()


def _edit(workspace: Workspace, pick: random.Random, shared: list[str], step: int) -> None:
    """One random change: a paragraph in, out, moved or taken over; a document added, renamed or deleted."""
    paths = sorted(workspace.docs.iterdir())
    path = pick.choice(paths)
    parts = path.read_text().split("\n\n")
    place = pick.randrange(len(parts))
    kind = pick.choice(("insert", "remove", "swap", "add", "rename", "delete", "word"))
    if kind == "insert":
        parts.insert(place, pick.choice(shared))
    elif kind == "remove" and len(parts) > 1:
        del parts[place]
    elif kind == "swap":
        other = pick.randrange(len(parts))
        parts[place], parts[other] = parts[other], parts[place]
    elif kind == "word":
        parts[place] = f"{parts[place]} word{pick.randrange(99)}"
    elif kind == "add":
        workspace.write(f"added{step}-{pick.randrange(10**6)}.rst", "\n\n".join(pick.sample(shared, 6)))
        return
    elif kind == "rename":
        path.rename(path.with_name(f"renamed{step}-{pick.randrange(10**6)}.rst"))
        return
    elif kind == "delete" and len(paths) > 4:
        path.unlink()
        return
    path.write_text("\n\n".join([*parts, f"Edited in step {step}."]))


def test_several_sources_prefix_their_documents(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", {"a.rst": DOCUMENTS[NAMES[0]]}, "sources.more.path=more")
    (workspace.root / "more").mkdir()
    (workspace.root / "more" / "a.rst").write_text(DOCUMENTS[NAMES[0]])
    report = workspace.run()
    assert tally(report) == {"seen": 2, "new": 2}
    snapshot = workspace.open_snapshot()
    found = {name: snapshot.get_document(name) for name in ("docs/a.rst", "more/a.rst")}
    assert {name: (row or {}).get("source") for name, row in found.items()} == {
        "docs/a.rst": "docs",
        "more/a.rst": "more",
    }
    assert 2 * encoded(report) == report.counts.segments_total


def test_heading_prefix_costs_overhead_and_changes_vectors_only(tmp_path: Path) -> None:
    text = f"# Tides\n\n## Northern coast\n\n{NEW_PARAGRAPH}\n\n{NEW_PARAGRAPH.replace('tide', 'wave')}\n"
    plain = Workspace.create(tmp_path / "plain", {"a.md": text})
    prefixed = Workspace.create(tmp_path / "prefixed", {"a.md": text}, "segment.heading_prefix=true")
    without, with_prefix = plain.run(), prefixed.run()
    assert with_prefix.counts.tokens_total == without.counts.tokens_total
    assert with_prefix.counts.tokens_overhead > without.counts.tokens_overhead
    mine, other = read_features(plain.open_snapshot()), read_features(prefixed.open_snapshot())
    places = ("key", "char_start", "char_end", "token_count", "density", "kind")
    assert [[row[n] for n in places] for row in mine] == [[row[n] for n in places] for row in other]
    assert any(row["codes"] != twin["codes"] for row, twin in zip(mine, other, strict=True))
    # The headings above a paragraph belong to its fingerprint: another heading, another vector.
    prefixed.write("a.md", text.replace("Northern", "Southern"))
    changed = prefixed.run()
    assert encoded(changed) == changed.counts.segments_total


@pytest.mark.parametrize(("base_below", "has_sentences"), [(0, True), (1, False)])
def test_density_threshold_decides_on_sentence_rows(tmp_path: Path, base_below: int, has_sentences: bool) -> None:
    workspace = Workspace.create(tmp_path / "work", DOCUMENTS, f"density.base_below={base_below}")
    report = workspace.run()
    counts = workspace.open_snapshot().count_features()
    if has_sentences:
        assert report.counts.tokens_base == 0
        assert counts["sentence"] > counts["paragraph"]
    else:
        rows = read_features(workspace.open_snapshot())
        dense = {row["density"] for row in rows if row["granularity"] == "sentence"}
        assert dense <= {1.0}
        assert report.counts.tokens_base > 0.9 * report.counts.tokens_total
    assert counts["paragraph"] > 0


@pytest.mark.parametrize("setting", ["encoder.batch_tokens=64", "encoder.batch_tokens=20000", "encoder.num_threads=1"])
def test_batches_and_threads_change_no_row(workspace: Workspace, tmp_path: Path, setting: str) -> None:
    other = replace(workspace, settings=(*workspace.settings, "store.uri=rebuilt", "run.chunk_documents=2"))
    other.run(setting)
    assert_equal_stores(workspace.open_snapshot(), open_rebuilt(workspace))


def test_mass_deletion_is_refused_and_costs_nothing(workspace: Workspace) -> None:
    before = read_store(workspace.open_snapshot())
    for path in workspace.docs.iterdir():
        path.unlink()
    with pytest.raises(MassDeletionRefused, match="12 of 12 documents"):
        workspace.run()
    assert read_store(workspace.open_snapshot()) == before
    report = workspace.run(allow_mass_delete=True)
    assert tally(report) == {"deleted": 12}
    assert workspace.open_snapshot().count_documents() == 0


def test_too_many_failures_publish_nothing(workspace: Workspace) -> None:
    before = read_store(workspace.open_snapshot())
    for name in NAMES[:7]:
        workspace.write(name, b"\xff\xff broken")
    with pytest.raises(QuarantineShareExceeded, match="7 of 12 documents failed"):
        workspace.run()
    assert read_store(workspace.open_snapshot()) == before
    report = workspace.run("run.max_quarantined_share=1")
    assert report.num_quarantined == 7


def test_quarantined_document_keeps_its_last_features_until_it_is_mended(workspace: Workspace) -> None:
    name = NAMES[4]
    before = read_features(workspace.open_snapshot())
    workspace.write(name, b"\xff\xff broken")
    report = workspace.run()
    assert tally(report) == {"seen": 12, "same": 11, "quarantined": 1}
    assert [item["doc_id"] for item in report.quarantined] == [name]
    assert read_features(workspace.open_snapshot()) == before
    broken = workspace.open_snapshot().get_document(name) or {}
    assert "not UTF-8" in broken["quarantine_reason"] and broken["text"] == DOCUMENTS[name]
    again = workspace.run()
    assert tally(again) == {"seen": 12, "same": 11, "quarantined": 1}
    assert again.snapshot_after == report.snapshot_after
    workspace.write(name, DOCUMENTS[name])
    mended = workspace.run()
    assert tally(mended) == {"seen": 12, "same": 11, "changed": 1}
    assert encoded(mended) == 0
    assert (workspace.open_snapshot().get_document(name) or {})["quarantine_reason"] is None


def test_source_state_says_what_was_listed(workspace: Workspace) -> None:
    workspace.write(NAMES[0], b"\xff\xff broken")
    workspace.run()
    states = {row["doc_id"]: row for row in workspace.open_snapshot().source_states().to_pylist()}
    for name in NAMES:
        info = (workspace.docs / name).stat()
        assert (states[name]["size_bytes"], states[name]["mtime_ns"]) == (info.st_size, info.st_mtime_ns)
        assert (states[name]["quarantine_reason"] is None) == (name != NAMES[0])
    (workspace.docs / NAMES[1]).unlink()
    workspace.run()
    assert NAMES[1] not in workspace.open_snapshot().source_states(["doc_id"])["doc_id"].to_pylist()
