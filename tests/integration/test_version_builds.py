"""Builds and promotions beside other writers, and killed at every step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lodestream.errors import (
    LeaseHeld,
    NotFoundError,
)
from lodestream.pipeline import versions
from lodestream.pipeline.gap import find_gap
from tests.support.versions import (
    DOCUMENTS,
    OTHER,
    assert_equals_rebuild,
    beside,
    edit,
    pointer_of,
    store_of,
)
from tests.support.workspace import (
    Workspace,
    read_store,
    run_killed,
)


def test_the_served_version_is_refreshed_between_the_turns_of_a_build(corpus: Workspace) -> None:
    edit(corpus)
    notes: list[str] = []
    settings = (OTHER, "run.chunk_documents=2")
    change = versions.add(corpus.load(*settings), "other", turn_s=0, show_note=notes.append)
    assert any("refreshed meanwhile: snapshot 3" in note for note in notes) and change.snapshot_after == 3
    assert change.done.computed > len(DOCUMENTS)
    assert not find_gap(corpus.open_snapshot(), beside(corpus))


def test_while_another_writes_nothing_is_promoted(with_other: Workspace) -> None:
    with store_of(with_other).open_lease("a run", ttl_s=2), pytest.raises(LeaseHeld):
        versions.promote(with_other.load(), "other")
    assert with_other.open_snapshot().version == "v1"


def test_a_build_waits_for_a_refresh_between_two_turns(corpus: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_LOOK_AGAIN_S", 0.01)
    held = threading.Event()

    def refresh_elsewhere(*_: Any) -> None:
        def hold() -> None:
            with store_of(corpus).open_lease("a refresh", ttl_s=2):
                held.set()
                threading.Event().wait(0.3)

        held.clear()
        threading.Thread(target=hold).start()
        assert held.wait(30)

    monkeypatch.setattr(versions, "_refresh_served", refresh_elsewhere)
    change = versions.add(corpus.load(OTHER, "run.chunk_documents=3"), "other", turn_s=0)
    assert held.is_set() and change.done.is_level


def test_a_version_that_is_dropped_during_its_build_stays_dropped(
    corpus: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_refresh_served", lambda loaded, _: versions.drop(loaded, "other"))
    with pytest.raises(NotFoundError):
        versions.add(corpus.load(OTHER, "run.chunk_documents=3"), "other", turn_s=0)
    assert not pointer_of(corpus).versions


def test_promotion_and_refreshes_at_once(with_other: Workspace) -> None:
    """Whoever comes first: every document is served, and by one version."""
    edit(with_other)
    refused: list[BaseException] = []

    def attempt(act: Callable[[], Any]) -> None:
        while True:
            try:
                act()
                return
            except LeaseHeld:
                continue
            except BaseException as error:
                refused.append(error)
                return

    acts: list[Callable[[], Any]] = [with_other.run, lambda: versions.promote(with_other.load(), "other")]
    threads = [threading.Thread(target=attempt, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused and with_other.open_snapshot().version == "other"
    assert_equals_rebuild(with_other, OTHER)


# Where a build is killed, and at which pass: its chunks pass the steps of a run.
KILLS = [
    ("version.created", 1),
    ("version.added", 1),
    ("chunk.features_committed", 2),
    ("chunk.documents_committed", 2),
    ("chunk.synced", 2),
    ("chunk.staged", 2),
    ("publish.indexed", 1),
    ("publish.synced", 1),
    ("version.finished", 1),
    ("publish.swung", 1),
]


@pytest.mark.parametrize(("step", "number"), KILLS)
def test_a_killed_build_goes_on(corpus: Workspace, step: str, number: int) -> None:
    before = read_store(corpus.open_snapshot())
    kill_at_step(corpus, step, number, "versions", "add", "other", "--promote", "--set", OTHER)
    pointer = pointer_of(corpus)
    if step != "publish.swung":
        assert pointer.version == "v1" and read_store(corpus.open_snapshot()) == before
    # Between a kill and the next try the served version is refreshed as ever.
    edit(corpus)
    corpus.run()
    if pointer.version == "v1":
        change = versions.add(corpus.load(OTHER, "run.chunk_documents=2"), "other")
        if step in ("chunk.staged", "publish.indexed"):
            assert change.done.computed < len(DOCUMENTS) + 1  # as many as there are: less than all is done again
        versions.promote(corpus.load(OTHER), "other")
    assert_equals_rebuild(corpus, OTHER)


def kill_at_step(workspace: Workspace, step: str, number: int, *arguments: str) -> None:
    settings = (*workspace.settings, "run.chunk_documents=2")
    options = [part for setting in settings for part in ("--set", setting)]
    run_killed(workspace.root, step, number, *arguments, *options)
