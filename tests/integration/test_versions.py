"""Feature versions, end to end: one built from stored texts beside the served one, promotion, and the way back."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import lodestream
from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.errors import (
    ConfigError,
    FeatureVersionMismatch,
    ModelError,
    NotFoundError,
    QuarantineShareExceeded,
)
from lodestream.kernels import weights
from lodestream.pipeline import feature_version, session, upkeep, versions
from lodestream.pipeline.checks.check import check_all
from lodestream.pipeline.feature_version import choose_featurizer
from lodestream.pipeline.gap import find_gap
from lodestream.pipeline.status import read_status
from tests.support.versions import (
    DOCUMENTS,
    NAMES,
    OTHER,
    assert_equals_rebuild,
    beside,
    edit,
    pointer_of,
)
from tests.support.workspace import (
    Workspace,
    last_json,
    read_store,
)


def test_other_features_are_refused_and_the_error_says_what_to_type(corpus: Workspace) -> None:
    before = read_store(corpus.open_snapshot())
    with pytest.raises(FeatureVersionMismatch, match="segment.heading_prefix False -> True") as caught:
        corpus.run(OTHER)
    assert "lodestream versions add NAME" in caught.value.hint and caught.value.exit_code == 5
    assert read_store(corpus.open_snapshot()) == before
    (model,) = [result for result in check_all(corpus.load(OTHER)) if result.name == "model"]
    assert (model.level, "versions add" in model.fix) == ("fail", True)
    status = read_status(corpus.load()).as_dict()
    assert status["failure"]["error"] == "FeatureVersionMismatch"
    versions.add(corpus.load(OTHER), "other")
    versions.promote(corpus.load(OTHER), "other")
    assert read_status(corpus.load()).as_dict()["failure"] is None


def test_a_version_is_built_from_stored_texts_alone(corpus: Workspace) -> None:
    shutil.rmtree(corpus.docs)
    before = read_store(corpus.open_snapshot())
    change = versions.add(corpus.load(OTHER), "other")
    assert change.done.computed == len(DOCUMENTS) + 1 and change.snapshot_after == change.snapshot_before
    # What both encode alike is taken over.
    assert 0 < change.done.counts.segments_encoded < change.done.counts.segments_total
    assert read_store(corpus.open_snapshot()) == before
    assert not find_gap(corpus.open_snapshot(), beside(corpus))


def test_promoted_features_equal_a_rebuild(with_other: Workspace) -> None:
    versions.promote(with_other.load(), "other")
    snapshot = with_other.open_snapshot()
    # A document in quarantine has features of this version, made of its last text that worked.
    assert snapshot.version == "other" and snapshot.get_features(NAMES[5]).num_rows
    assert (snapshot.get_document(NAMES[5]) or {})["quarantine_reason"]
    assert_equals_rebuild(with_other, OTHER)


def test_promote_catches_up_with_refreshes_since(with_other: Workspace) -> None:
    edit(with_other)
    with_other.run()
    assert find_gap(with_other.open_snapshot(), beside(with_other)).num_documents == 5
    change = versions.promote(with_other.load(), "other")
    assert (change.done.computed, change.done.removed) == (3, 2)
    assert_equals_rebuild(with_other, OTHER)


def test_rollback_serves_the_former_features_of_the_latest_documents(with_other: Workspace) -> None:
    versions.promote(with_other.load(), "other")
    edit(with_other)
    with_other.run(OTHER)
    assert versions.name_former(with_other.load()) == "v1"
    versions.promote(with_other.load(), "v1")
    assert with_other.open_snapshot().version == "v1"
    assert_equals_rebuild(with_other)


def test_a_reader_goes_on_over_a_promotion(with_other: Workspace) -> None:
    library = lodestream.open(with_other.root)
    before = read_store(library.snapshot)
    versions.promote(with_other.load(), "other")
    with_other.run(OTHER)
    assert read_store(library.snapshot) == before and library.search("tides", limit=1)
    library.refresh_snapshot()
    assert library.snapshot.version == "other" and library.search("tides", limit=1)


def test_nothing_to_compute_needs_no_model(with_other: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelError("there is no model")

    monkeypatch.setattr(versions, "featurizer_of", refuse)
    assert versions.promote(with_other.load(), "other").served == "other"
    edit(with_other)
    with_other.run(OTHER)
    with pytest.raises(ModelError):
        versions.promote(with_other.load(), "v1")
    assert with_other.open_snapshot().version == "other"


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """Another model as far as anybody can tell: its vocabulary says something more."""
    folder = tmp_path / "models" / "own"
    shutil.copytree(find_model(DEFAULT_MODEL)[0], folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "own"}))
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"truncation": None, "padding": None}) + "\n")
    return folder


def test_a_model_of_ones_own_is_found_where_it_was(corpus: Workspace, own_model: Path) -> None:
    setting = f"encoder.model={own_model}"
    versions.add(corpus.load(setting), "own")
    versions.promote(corpus.load(), "own")
    # The configuration asks for v1, which is kept: the version that is served is kept fresh all the same.
    notes: list[str] = []
    edit(corpus)
    report = corpus.run(show_note=notes.append)
    assert report.snapshot_after != report.snapshot_before and corpus.open_snapshot().version == "own"
    assert any("asks for the features of version v1" in note for note in notes)
    assert lodestream.open(corpus.root).search("tides", limit=1)
    moved = own_model.parent.rename(own_model.parents[1] / "elsewhere") / own_model.name
    with pytest.raises(ModelError, match="own, weights sha256"):
        corpus.run()
    corpus.run(f"encoder.model={moved}", show_note=notes.append)
    assert_equals_rebuild(corpus, f"encoder.model={moved}")


def test_a_folder_is_hashed_once_whatever_it_is_compared_with(
    corpus: Workspace, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    hash_file = weights._hash_file
    monkeypatch.setattr(weights, "_hash_file", lambda path: hashed.append(path) or hash_file(path))
    pointer = pointer_of(corpus)
    kept = pointer.keep_served(datetime.now(UTC))
    others = tuple(
        replace(kept, name=f"kept {number}", recipe={**kept.recipe, "precision": precision})
        for number, precision in enumerate(("fp32", "bf16", "fp32"))
    )
    with pytest.raises(FeatureVersionMismatch):
        choose_featurizer(corpus.load(f"encoder.model={own_model}"), replace(pointer, versions=others))
    assert len(hashed) == 1


def test_another_precision_class_is_never_mixed_in(corpus: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of fp32 features on whatever machine, then one whose features need bf16 on a machine without it."""
    versions.add(corpus.load("encoder.precision=fp32", "segment.target_tokens=31"), "full")
    versions.promote(corpus.load(), "full")
    featurizer, _ = choose_featurizer(corpus.load("segment.target_tokens=31"), pointer_of(corpus))
    assert featurizer.precision == "fp32"
    pointer = pointer_of(corpus)
    recipe = {**pointer.recipe, "precision": "bf16"}
    monkeypatch.setattr(session, "native_precision", lambda: "fp32")
    with pytest.raises(ConfigError, match="bf16") as caught:
        choose_featurizer(corpus.load("segment.target_tokens=31"), replace(pointer, recipe=recipe))
    assert "versions add NAME --set encoder.precision=fp32" in caught.value.hint


def test_a_release_that_computes_otherwise_refuses(with_other: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from lodestream.actors import featurizer

    monkeypatch.setattr(featurizer, "SPANS_VERSION", featurizer.SPANS_VERSION + 1)
    with pytest.raises(FeatureVersionMismatch, match="spans_version"):
        with_other.run()
    edit(with_other)
    with pytest.raises(FeatureVersionMismatch, match="cannot be computed by this lodestream"):
        feature_version.featurizer_of(with_other.load(), feature_version.Recipe.of_served(pointer_of(with_other)))
    versions.add(with_other.load(), "new")
    versions.promote(with_other.load(), "new")
    with_other.run()
    assert with_other.open_snapshot().version == "new"


def test_names_and_features_are_not_confused(with_other: Workspace) -> None:
    with pytest.raises(ConfigError, match="those of version v1"):
        versions.add(with_other.load(), "again")
    with pytest.raises(ConfigError, match="of other features: .*density.base_below 0.2 -> 0.4"):
        versions.add(with_other.load("density.base_below=0.4"), "other")
    with pytest.raises(ConfigError, match="the one that is served"):
        versions.promote(with_other.load(), "v1")
    with pytest.raises(ConfigError, match="the one that is served"):
        versions.drop(with_other.load(), "v1")
    with pytest.raises(NotFoundError):
        versions.name_former(with_other.load())
    assert versions.add(with_other.load(), "other").done.computed == 0


def test_a_document_that_the_version_cannot_use_is_told(corpus: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from lodestream.actors import outlines
    from lodestream.errors import DocumentError

    outline = outlines.outline_documents

    def refuse(texts: list[str], *rest: Any) -> Any:
        if any(text == DOCUMENTS[NAMES[0]] for text in texts):
            raise DocumentError("too knotty")
        return outline(texts, *rest)

    monkeypatch.setattr(outlines, "outline_documents", refuse)
    change = versions.add(corpus.load(OTHER), "other")
    assert change.done.failed == [{"doc_id": NAMES[0], "reason": "too knotty"}]
    assert versions.add(corpus.load(OTHER), "other").done.computed == 0
    assert beside(corpus).get_features(NAMES[0]).num_rows == 0
    with pytest.raises(QuarantineShareExceeded, match="cannot use 1 of 7 documents"):
        versions.promote(corpus.load(OTHER, "run.max_quarantined_share=0.1"), "other")
    assert corpus.open_snapshot().version == "v1"


@pytest.mark.parametrize("verb", ["purge", "repair"])
def test_what_is_in_quarantine_is_counted_after(corpus: Workspace, verb: str) -> None:
    loaded = corpus.load()
    assert read_status(loaded).as_dict()["quarantined"] == 1
    if verb == "purge":
        upkeep.purge(loaded, upkeep.plan(loaded, [NAMES[5]]))
    else:
        for path in (corpus.store / "features.lance" / "data").iterdir():
            path.unlink()
        assert NAMES[5] in upkeep.repair(loaded, upkeep.verify(loaded, deep=False)).to_compute
    assert read_status(loaded).as_dict()["quarantined"] == 0


def test_the_verbs_as_they_are_typed(corpus: Workspace) -> None:
    settings = [part for setting in corpus.settings for part in ("--set", setting)]

    def type_in(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = corpus.command(*arguments, *settings)
        assert done.returncode == code, done.stderr
        return done

    refused = type_in("refresh", "--set", OTHER, code=5)
    assert "segment.heading_prefix False -> True" in refused.stderr and "lodestream versions add NAME" in refused.stderr
    added = json.loads(type_in("versions", "add", "other", "--set", OTHER, "--json").stdout)
    assert (added["version"], added["served"], added["documents"]["computed"]) == ("other", "v1", len(DOCUMENTS) + 1)
    rows = json.loads(type_in("versions", "list", "--json").stdout)
    assert [(row["name"], row["state"], row["documents_behind"]) for row in rows] == [
        ("v1", "served", 0),
        ("other", "beside", 0),
    ]
    hits = json.loads(type_in("search", "tides", "--version", "other", "--json").stdout)
    assert hits["version"] == "other" and hits["hits"]
    assert json.loads(type_in("get", NAMES[0], "--json").stdout)["version"] == "v1"
    promoted = type_in("versions", "promote", "other")
    assert "version other is served in the place of v1" in promoted.stdout
    assert "segment.heading_prefix False -> True" in promoted.stderr  # what to write into lodestream.toml
    assert "beside     v1" in corpus.command("status").stdout
    assert json.loads(type_in("snapshots", "list", "--json").stdout)[-1]["version"] == "other"
    assert last_json(type_in("versions", "rollback", "--json", code=2))["error"] == "ConfigError"
    assert "version v1 is served in the place of other" in type_in("versions", "rollback", "--yes").stdout
    dropped = json.loads(type_in("versions", "drop", "other", "--yes", "--json").stdout)
    assert dropped == {"dropped": "other", "lost_snapshots": [3]}
    assert "there is no feature version 'other'" in type_in("versions", "promote", "other", code=1).stderr
