"""The stages under a real local Ray: the same rows as in this process, whatever fails on the way."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from lodestream.errors import ExecutorError, LodestreamError, StoreCorrupt
from lodestream.pipeline import ray_executor
from lodestream.pipeline.work import ChunkWriter
from lodestream.storage.store import FeatureStore, Snapshot
from tests.support.workspace import Workspace, assert_equal_stores, short_topics

DOCUMENTS = short_topics(12)
NAMES = list(DOCUMENTS)
BROKEN: dict[str, str | bytes] = {"latin.md": b"caf\xe9 au lait", "photo.txt": b"\x89PNG\r\n\x1a\n\0\0\0"}


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with warnings.catch_warnings():
        # What Ray itself does while it starts and ends is not ours to mend.
        warnings.simplefilter("ignore")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["_"]))
        yield
        ray.shutdown()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Documents that make several blocks, for both executors to run over."""
    monkeypatch.setattr(ray_executor, "MICRO_BATCH_DOCUMENTS", 4)
    return Workspace.create(tmp_path / "work", DOCUMENTS | BROKEN, "run.executor=ray")


def open_local_twin(workspace: Workspace) -> Snapshot:
    """What a run in this process makes of the same documents."""
    twin = replace(workspace, settings=("run.executor=local", "store.uri=twin"))
    twin.run()
    return FeatureStore.open(str(workspace.root / "twin")).open_snapshot()


def test_ray_stores_what_local_stores_and_reuses_it(workspace: Workspace) -> None:
    """Two chunks of several blocks each, with broken documents in them; then an edit, a deletion, a new document."""
    report = workspace.run("run.chunk_documents=9")
    assert (report.executor, report.snapshot_after) == ("ray", 1)
    assert report.num_by_status == {"new": 12, "quarantined": 2}
    assert {item["doc_id"]: item["reason"].split(":")[0] for item in report.quarantined} == {
        "latin.md": "not UTF-8",
        "photo.txt": "binary",
    }
    assert_equal_stores(workspace.open_snapshot(), open_local_twin(workspace))

    workspace.write(
        NAMES[0], DOCUMENTS[NAMES[0]] + "\n\nThe tide table of the year 1911 hung beside the kitchen door.\n"
    )
    workspace.write("copy.rst", DOCUMENTS[NAMES[1]])
    (workspace.docs / NAMES[2]).unlink()
    again = workspace.run()
    assert again.as_dict()["documents"] == {
        "seen": 14, "new": 1, "changed": 1, "moved": 0, "same": 10, "deleted": 1, "quarantined": 2, "resumed": 0,
    }  # fmt: skip
    assert 1 <= again.counts.segments_encoded <= 2 < again.counts.segments_total
    assert_equal_stores(workspace.open_snapshot(), open_local_twin(workspace))


def test_several_encoder_actors_store_the_same(workspace: Workspace) -> None:
    workspace.run("run.ray_workers=2")
    assert_equal_stores(workspace.open_snapshot(), open_local_twin(workspace))


def test_of_those_who_hear_ray_data_only_the_terminal_hears_less(caplog: pytest.LogCaptureFixture) -> None:
    """pytest listens to every logger that does not propagate, with the handler that it listens to ours with."""
    handlers = logging.getLogger("ray.data").handlers
    assert caplog.handler in handlers
    ray_executor._quieten_ray()
    quiet = [type(handler).__name__ for handler in handlers if handler.level == logging.CRITICAL]
    assert quiet == ["PlainRayHandler"]


class FailingIndex:
    """A look-up that fails; it travels to the encoder actors as the store's own does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_segments(self, fingerprints: Sequence[bytes]) -> pa.Table:
        raise self.error


class KillingIndex(FailingIndex):
    """Kills the actor that it is in at the second look-up, the first time only."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag
        self.num_calls = 0

    def find_segments(self, fingerprints: Sequence[bytes]) -> pa.Table:
        self.num_calls += 1
        if self.num_calls == 2 and self.flag.exists():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({})  # finds nothing


def ask_first(monkeypatch: pytest.MonkeyPatch, index: FailingIndex) -> None:
    """Puts ``index`` before the store's own."""
    list_indexes = ChunkWriter._indexes
    monkeypatch.setattr(ChunkWriter, "_indexes", lambda work: [index, *list_indexes(work)])


def test_killed_encoder_actor_leaves_no_row_twice(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = workspace.root / "kill"
    flag.touch()
    with monkeypatch.context() as patch:
        ask_first(patch, KillingIndex(flag))
        report = workspace.run()
    assert not flag.exists(), "no actor was killed"
    assert report.num_by_status == {"new": 12, "quarantined": 2}
    # Fails also where a key or a document comes twice.
    assert_equal_stores(workspace.open_snapshot(), open_local_twin(workspace))


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (StoreCorrupt("the table is gone", "restore it"), "the table is gone\n  next: restore it"),
        (ValueError("no such axis"), "Ray Data failed: ValueError: no such axis\n  next: run again"),
    ],
)
def test_error_in_a_worker_comes_out_with_its_own_words(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    seen: str,
) -> None:
    ask_first(monkeypatch, FailingIndex(error))
    with pytest.raises(LodestreamError) as raised:
        workspace.run()
    assert seen in str(raised.value)
    assert "Traceback" not in capfd.readouterr().err


def test_pool_that_cannot_start_is_refused_at_once(workspace: Workspace) -> None:
    with pytest.raises(ExecutorError, match="needs 12 logical CPUs for 40 encoder actors, Ray has 4"):
        workspace.run("run.ray_workers=40")
