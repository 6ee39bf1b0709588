"""A run that is killed with SIGKILL, at random and at every named step: the next one ends where one run would have."""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import StoreNotFound
from lodestream.storage.coordination import open_lease
from lodestream.storage.lease import DEFAULT_TTL_S, read_lease
from lodestream.storage.location import Location
from lodestream.storage.steps import STEPS
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.workspace import (
    Workspace,
    assert_equal_stores,
    command_environ,
    last_json,
    read_documents,
    read_features,
    run_killed,
    short_topics,
)

NUM_KILLS = 20
CHUNK_DOCUMENTS = 3
DOCUMENTS = short_topics(30)
SHORT_TTL = "lease.ttl_s=1"  # for so long the next run watches whether the killed one is alive
BEGUN = "executor local"
DONE = re.compile(r"(\d+)/\d+ documents")
RESUMED = re.compile(r"interrupted: (\d+) documents")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """What a process had said on its terminal when it ended.

    ``was_killed``         it was ended by us, and not by being done
    ``documents_done``     documents that it had worked through, those included that it found done
    ``documents_resumed``  documents that it found done; None where it was killed before it could say so
    ``seconds``            time from the moment it began to work
    """

    was_killed: bool
    documents_done: int
    documents_resumed: int | None
    seconds: float


@pytest.mark.timeout(900)
def test_twenty_random_kills_cost_a_chunk_each_at_most(tmp_path: Path) -> None:
    """A backfill is killed until it is through, or four times and then left alone; then the next store is begun."""
    pick = random.Random(20)
    workspace = Workspace.create(tmp_path / "work", DOCUMENTS, SHORT_TTL, f"run.chunk_documents={CHUNK_DOCUMENTS}")
    for path in workspace.docs.iterdir():
        os.utime(path, (1.7e9, 1.7e9))  # a file of this very moment is read again, for it may have changed since
    undisturbed = run_and_kill(replace(workspace, settings=(*workspace.settings, "store.uri=twin")), after_s=60)
    assert not undisturbed.was_killed and undisturbed.documents_done == len(DOCUMENTS)
    wanted = open_store(workspace.root / "twin")
    num_kills = 0
    while num_kills < NUM_KILLS:
        shutil.rmtree(workspace.store, ignore_errors=True)
        most_done = 0
        for _ in range(4):
            run = run_and_kill(workspace, after_s=pick.uniform(0, undisturbed.seconds))
            num_kills += run.was_killed
            if run.documents_resumed is not None:
                assert run.documents_resumed >= most_done - CHUNK_DOCUMENTS, "a kill cost more than a chunk"
            most_done = max(most_done, run.documents_done)
            if is_published(workspace):
                break
        else:
            finished = workspace.command("run", "--json", "--set", SHORT_TTL, "--set", workspace.settings[-1])
            assert finished.returncode == 0, finished.stderr
            documents = last_json(finished)["documents"]
            assert documents["new"] + documents["resumed"] == len(DOCUMENTS)
            assert documents["resumed"] >= most_done - CHUNK_DOCUMENTS, "a kill cost more than a chunk"
        assert_equal_stores(workspace.open_snapshot(), wanted)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_ctrl_c_keeps_finished_chunks(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    workspace = Workspace.create(tmp_path / "work", DOCUMENTS, "run.chunk_documents=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", "run", "--set", "run.chunk_documents=1"],
        cwd=workspace.root,
        env=command_environ(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as said:
        while BEGUN not in said.readline():
            assert process.poll() is None
        while not (workspace.store / "documents.lance" / "data").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(sent)
        words = said.read()
    assert process.wait() == code
    assert "interrupted; finished chunks are kept" in words and "Traceback" not in words
    lease = read_lease(open_lease(Location.parse(str(workspace.store)), ttl_s=DEFAULT_TTL_S))
    assert lease is not None and lease[0].released, "the next run would have to wait"
    finished = last_json(workspace.command("run", "--json", "--set", "run.chunk_documents=1"))["documents"]
    assert finished["new"] + finished["resumed"] == len(DOCUMENTS)


def is_published(workspace: Workspace) -> bool:
    """Whether the run that just ended, killed or not, had swung the pointer."""
    try:
        workspace.open_snapshot()
    except StoreNotFound:
        return False
    return True


def run_and_kill(workspace: Workspace, *, after_s: float) -> EndedRun:
    """``lodestream run`` on a terminal; kills it ``after_s`` after it began to work on documents or on the store."""
    terminal, its_end = pty.openpty()
    settings = [part for setting in workspace.settings for part in ("--set", setting)]
    has_store = workspace.store.exists()
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", "run", *settings],
        cwd=workspace.root,
        env=command_environ(),
        stdout=subprocess.DEVNULL,
        stderr=its_end,
    )
    os.close(its_end)
    said = bytearray()
    reader = threading.Thread(target=_read_all, args=(terminal, said))
    reader.start()
    while process.poll() is None and BEGUN.encode() not in said and has_store == workspace.store.exists():
        time.sleep(0.005)
    began = time.monotonic()
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    code = process.wait()
    seconds = time.monotonic() - began
    reader.join()
    os.close(terminal)
    text = said.decode()
    assert code in (0, -signal.SIGKILL), text
    found = RESUMED.findall(text)
    resumed = int(found[0]) if found else 0
    return EndedRun(
        was_killed=code != 0,
        documents_done=resumed + max(map(int, DONE.findall(text)), default=0),
        documents_resumed=resumed if BEGUN in text else None,
        seconds=seconds,
    )


def _read_all(terminal: int, said: bytearray) -> None:
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            return


def open_store(folder: Path) -> Snapshot:
    return FeatureStore.open(str(folder)).open_snapshot()


FEW = short_topics(7)
NAMES = list(FEW)
# Which pass of the step is the last thing the process does. A refresh passes the register's steps for its lease, for
# its claim on the pointer, for each chunk, for the publishing, and for giving the lease back.
KILLS = [(step, 1) for step in STEPS if step.startswith(("begin.", "chunk.", "publish."))]
KILLS += [("chunk.features_committed", 2), ("chunk.staged", 2)]
KILLS += [(step, number) for step in STEPS if step.startswith("register.") for number in (1, 2, 4)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Two stores, made by undisturbed runs: before an edit and, in a workspace of its own, after it."""

    before: Workspace
    after: Workspace


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("steps")
    before = Workspace.create(folder / "before", FEW, "run.chunk_documents=2", SHORT_TTL)
    before.run()
    after = Workspace.create(folder / "after", FEW, "run.chunk_documents=2", SHORT_TTL)
    edit(after)
    after.run()
    return Prepared(before=before, after=after)


def edit(workspace: Workspace) -> None:
    """Two documents change, one goes, one comes: three chunks, of which the first only deletes."""
    for name in NAMES[1:3]:
        workspace.write(name, FEW[name] + "\n\nThe tide table of 1911 hung beside the kitchen door.\n")
    (workspace.docs / NAMES[4]).unlink()
    workspace.write("new.rst", FEW[NAMES[5]].upper())


@pytest.mark.parametrize(("step", "number"), KILLS)
def test_kill_at_a_named_step(prepared: Prepared, tmp_path: Path, step: str, number: int) -> None:
    shutil.copytree(prepared.before.root, tmp_path / "work")
    workspace = Workspace(root=tmp_path / "work", settings=prepared.before.settings)
    edit(workspace)
    settings = ["run.chunk_documents=2"]
    if step == "chunk.restored":  # passed where an earlier run was killed between its commits
        kill_at_step(workspace, "chunk.documents_committed", 1, settings)
    if step == "publish.compacted":  # passed by the upkeep after a run, where there are many files
        settings += ["upkeep.max_small_files=1"]
    kill_at_step(workspace, step, number, settings)

    before, after = read_rows(prepared.before.store), read_rows(prepared.after.store)
    assert read_rows(workspace.store) in (before, after), "a reader sees neither the state before nor the one after"
    workspace.run()
    assert read_rows(workspace.store) == after


def read_rows(store: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a store has published, without what differs because the documents lie elsewhere."""
    snapshot = open_store(store)
    return read_features(snapshot, without=("source_version",)), read_documents(
        snapshot, without=("uri", "source_version")
    )


def kill_at_step(workspace: Workspace, step: str, number: int, settings: list[str]) -> None:
    """``lodestream run`` in a process that dies at the step."""
    options = [part for setting in ("run.executor=local", SHORT_TTL, *settings) for part in ("--set", setting)]
    run_killed(workspace.root, step, number, "run", *options)


@pytest.mark.parametrize("step", ["register.written", "register.linked", "begin.claimed"])
def test_kill_while_the_store_is_made(prepared: Prepared, tmp_path: Path, step: str) -> None:
    shutil.copytree(prepared.after.docs, tmp_path / "work" / "docs")
    shutil.copy(prepared.after.root / "lodestream.toml", tmp_path / "work")
    workspace = Workspace(root=tmp_path / "work", settings=prepared.after.settings)
    kill_at_step(workspace, step, 1, ["run.chunk_documents=2"])
    workspace.run()
    assert read_rows(workspace.store) == read_rows(prepared.after.store)
