"""The moments in which a writer's right to write is in question: a stopped run that wakes up, a server that is gone for
a while, an answer that is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lodestream.errors import LeaseError, StoreUnreachable
from lodestream.storage.location import Location
from lodestream.storage.registers.opening import RegisterKind
from lodestream.storage.store import FeatureStore
from tests.fault.chaos.places import make_location
from tests.support.fault_proxy import FaultProxy
from tests.support.registers import WRITE_MARKS, change_port, find_server
from tests.support.servers import Server, run_etcd, run_postgres, run_redis
from tests.support.store_rows import DIM, begin, publish, read_contents, take_lease, write
from tests.support.workspace import Workspace, command_environ, short_topics

RUN_AND_STOP = """
import signal, sys
from lodestream.pipeline.cli.app import main
from tests.support.kill_at_step import kill_at
kill_at(sys.argv[1], 1, signal.SIGSTOP)
sys.argv = ["lodestream", "run", "--set", "lease.ttl_s=1.0", "--set", "run.executor=local"]
main()
"""
RUNNERS = {"etcd": run_etcd, "postgres": run_postgres, "redis": run_redis}
DESCRIBED: dict[str, Any] = {"run_id": "run", "kind": "refresh", "feature_version": "f1", "recipe": {}}


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    give_up_at = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up_at, "the run never came to the step"
        time.sleep(0.05)


@pytest.mark.parametrize("step", ["begin.claimed", "chunk.files_written", "publish.synced"])
def test_stopped_run_wakes_up_after_its_ttl(tmp_path: Path, step: str) -> None:
    """Another run has taken over and ended by then: the sleeper says so, exits with 4, and has changed nothing."""
    workspace = Workspace.create(tmp_path / "work", short_topics(3), "lease.ttl_s=1.0")
    command = [sys.executable, "-c", RUN_AND_STOP, step]
    sleeper = subprocess.Popen(
        command, cwd=workspace.root, env=command_environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_stopped(sleeper)
        began = time.monotonic()
        workspace.run()
        assert time.monotonic() - began >= 1.0, "it did not wait for the sleeper's TTL"
        pointer = FeatureStore.open(str(workspace.store)).pointer()
        sleeper.send_signal(signal.SIGCONT)
        _, errors = sleeper.communicate(timeout=60)
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert sleeper.returncode == 4, errors
    assert "let the other run end" in errors
    store = FeatureStore.open(str(workspace.store))
    assert store.pointer() == pointer and pointer.sequence == 1
    assert store.open_snapshot().count_documents() == 3


@pytest.fixture(params=RUNNERS)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of this test's own, which it may stop."""
    with RUNNERS[request.param]() as server:
        yield server


@pytest.fixture
def guarded_store(own_server: Server, tmp_path: Path) -> FeatureStore:
    location = Location.parse(tmp_path / "store", server=own_server.url)
    store = FeatureStore.open_or_create(location, dim=DIM)
    publish(store, {"a": ["1"]})
    take_lease(store).release()
    return store


def test_server_restarts_under_a_writer(own_server: Server, guarded_store: FeatureStore) -> None:
    """Shorter than a TTL: nobody notices. But Redis has forgotten, so that its writer stops."""
    with guarded_store.open_lease("writer", ttl_s=12.0) as lease:
        transaction = guarded_store.begin(lease=lease, **DESCRIBED)
        write(transaction, {"b": ["2"]})
        own_server.stop()
        own_server.start()
        lease.renew()
        if own_server.name == "redis-server":
            with pytest.raises(LeaseError):
                transaction.publish(checkpoint={}, run={})
        else:
            transaction.publish(checkpoint={}, run={})
            assert not lease.lost.is_set()
    wanted = {"a": ["1"]} if own_server.name == "redis-server" else {"a": ["1"], "b": ["2"]}
    assert read_contents(guarded_store.open_snapshot()) == wanted
    assert read_contents(publish(guarded_store, {"c": ["3"]})) == {"a": ["1"], "b": ["2"], "c": ["3"]}


def test_server_is_gone_for_longer_than_a_ttl(own_server: Server, guarded_store: FeatureStore) -> None:
    """The writer stops by itself, with a reason; the next one continues from what it had staged."""
    with guarded_store.open_lease("writer", ttl_s=1.0) as lease:
        transaction = guarded_store.begin(lease=lease, **DESCRIBED)
        write(transaction, {"b": ["2"]})
        own_server.stop()
        assert lease.lost.wait(10)
        with pytest.raises((LeaseError, StoreUnreachable)) as caught:
            transaction.publish(checkpoint={}, run={})
        assert caught.value.exit_code in (4, 75) and caught.value.hint
        own_server.start()
    assert read_contents(guarded_store.open_snapshot()) == {"a": ["1"]}
    following = begin(guarded_store)
    assert following.resumed
    following.publish(checkpoint={}, run={})
    assert read_contents(guarded_store.open_snapshot()) == {"a": ["1"], "b": ["2"]}


@pytest.mark.parametrize("kind", ["object", "etcd", "postgres"])
def test_answer_to_the_swing_is_lost(request: pytest.FixtureRequest, tmp_path: Path, kind: RegisterKind) -> None:
    """The pointer has swung and the writer has not heard so: it finds out, and publishes nothing twice."""
    direct = make_location(kind, tmp_path, lambda name: find_server(request, name))
    proxy = FaultProxy(find_server(request, "s3" if kind == "object" else kind).port)
    options = dict(direct.options)
    if kind == "object":
        options["aws_endpoint"] = change_port(options["aws_endpoint"], proxy.port)
    server = None if direct.server is None else change_port(direct.server, proxy.port)
    store = FeatureStore.open_or_create(Location(uri=direct.uri, options=options, server=server), dim=DIM)
    transaction = begin(store)
    write(transaction, {"a": ["1"]})
    proxy.lose_replies(1, mark=b"/store/pointer.json HTTP" if kind == "object" else WRITE_MARKS[kind])
    snapshot = transaction.publish(checkpoint={"files": 1}, run={})
    assert proxy.num_lost == 1, "no answer was lost: this showed nothing"
    assert snapshot.sequence == 1
    proxy.close()
    found = FeatureStore.open(direct)
    assert found.pointer().sequence == 1 and len(found.pointer().history) == 1
    assert read_contents(found.open_snapshot()) == {"a": ["1"]}
