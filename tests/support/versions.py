"""A small corpus with a feature version beside the one that is served."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lodestream.pipeline import versions
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.workspace import Workspace, assert_equal_stores, short_topics

DOCUMENTS = short_topics(6)
NAMES = list(DOCUMENTS)
OTHER = "segment.heading_prefix=true"
SHORT_TTL = "lease.ttl_s=2"
NEW_PARAGRAPH = "The tide table of 1911 hung beside the kitchen door, and nobody had taken it down."


@pytest.fixture(scope="session")
def made_corpus(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Seven documents, a page of HTML among them and one in quarantine, after two runs; tests work in copies."""
    workspace = Workspace.create(tmp_path_factory.mktemp("versions") / "work", DOCUMENTS, SHORT_TTL)
    workspace.write("page.html", f"<html><body><h1>Tides</h1><p>{NEW_PARAGRAPH}</p></body></html>")
    workspace.run()
    workspace.write(NAMES[5], b"\0 spoiled")
    workspace.run("run.max_quarantined_share=1")
    return workspace


@pytest.fixture
def corpus(made_corpus: Workspace, tmp_path: Path) -> Workspace:
    """A copy to work in."""
    folder = tmp_path / "work"
    shutil.copytree(made_corpus.root, folder)
    return replace(made_corpus, root=folder, settings=(*made_corpus.settings, "run.max_quarantined_share=1"))


@pytest.fixture
def with_other(corpus: Workspace) -> Workspace:
    """The copy, with a finished version ``other`` beside the served one."""
    versions.add(corpus.load(OTHER), "other")
    return corpus


def store_of(workspace: Workspace) -> FeatureStore:
    """Its store."""
    return FeatureStore.open(str(workspace.store))


def pointer_of(workspace: Workspace) -> PointerRecord:
    """Its store's pointer."""
    return store_of(workspace).pointer()


def beside(workspace: Workspace, name: str = "other") -> Snapshot:
    """What there is of a version beside the served one."""
    return store_of(workspace).open_snapshot(version=name)


def edit(workspace: Workspace) -> None:
    """One document changes, one goes, one comes, one has another name."""
    workspace.write(NAMES[0], f"{DOCUMENTS[NAMES[0]]}\n\n{NEW_PARAGRAPH}\n")
    (workspace.docs / NAMES[1]).unlink()
    (workspace.docs / NAMES[2]).rename(workspace.docs / "moved.rst")
    workspace.write("new.rst", DOCUMENTS[NAMES[3]].upper())


def assert_equals_rebuild(workspace: Workspace, *settings: str) -> None:
    """What is served has the rows of a store that was built anew; a document in quarantine keeps nothing there."""
    (workspace.docs / NAMES[5]).write_text(DOCUMENTS[NAMES[5]])
    workspace.run(*settings)
    workspace.run(*settings, "store.uri=rebuilt")
    # The workspace is a copy: documents that did not change have the place of the original.
    different = ("source_version", "uri")
    assert_equal_stores(workspace.open_snapshot(), workspace.open_store("rebuilt"), without=different)
