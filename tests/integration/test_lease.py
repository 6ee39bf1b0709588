"""Who may write: real processes at one store, and the servers in which they agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lodestream.errors import ConfigError, FencedError, LeaseLost, StoreNotFound
from lodestream.pipeline.status import read_status
from lodestream.storage.coordination import MARKER_NAME, open_lease
from lodestream.storage.location import Location
from lodestream.storage.registers.opening import RegisterKind
from lodestream.storage.store import FeatureStore
from tests.support.registers import find_server
from tests.support.servers import (
    describe_s3,
    etcd_server,
    find_free_port,
    make_bucket,
    postgres_server,
    redis_server,
    s3_server,
)
from tests.support.store_rows import DIM, begin, publish, read_contents, take_lease, write
from tests.support.workspace import Workspace, command_environ, last_json, short_topics

__all__ = ["etcd_server", "postgres_server", "redis_server", "s3_server"]

TTL_S = 3.0
ENVIRON = {"LODESTREAM__LEASE__TTL_S": str(TTL_S), "LODESTREAM__RUN__EXECUTOR": "local"}
HOLD = """
import sys, time
from lodestream.storage.store import FeatureStore
with FeatureStore.open(sys.argv[1]).open_lease("holder", ttl_s=float(sys.argv[2])) as lease:
    print(lease.epoch, flush=True)
    if lease.lost.wait(60):
        print("lost", flush=True)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.create(tmp_path / "work", short_topics(2))
    made.run()
    return made


@pytest.fixture
def holder(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lease."""
    command = [sys.executable, "-c", HOLD, str(workspace.store), str(TTL_S)]
    process = subprocess.Popen(command, env=command_environ(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "2\n"
    yield process
    process.kill()
    process.communicate()


def test_a_live_holder_makes_a_refresh_skip_and_a_run_stop(workspace: Workspace, holder: subprocess.Popen[str]) -> None:
    skipped = workspace.command("refresh", "--json", environ=ENVIRON)
    values = last_json(skipped)
    assert (skipped.returncode, values["skipped"], values["epoch"]) == (0, True, 2)
    assert "holder on" in values["holder"]
    refused = workspace.command("run", environ=ENVIRON)
    assert refused.returncode == 4 and "holder on" in refused.stderr and "unlock --epoch 2" in refused.stderr
    status = workspace.command("status", "--json", environ=ENVIRON)
    assert '"held": true' in status.stdout and "holder on" in status.stdout
    # It hangs, somebody decides: it is told, and the next run need not wait.
    assert workspace.command("unlock", "--epoch", "7", "--yes", environ=ENVIRON).returncode == 1
    unlocked = workspace.command("unlock", "--epoch", "2", "--yes", environ=ENVIRON)
    assert unlocked.returncode == 0 and "has lost the lease" in unlocked.stdout
    assert holder.stdout is not None and holder.stdout.readline() == "lost\n"
    assert workspace.command("unlock", "--epoch", "2", "--yes", environ=ENVIRON).returncode == 1
    assert workspace.run().snapshot_after == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_holder_blocks_a_refresh_for_one_ttl(
    workspace: Workspace, holder: subprocess.Popen[str], end: signal.Signals
) -> None:
    os.kill(holder.pid, end)
    lease = FeatureStore.open(str(workspace.store)).open_lease("next", ttl_s=TTL_S)
    began = time.monotonic()
    assert lease.acquire() == 3
    assert 0.9 * TTL_S <= time.monotonic() - began <= 2 * TTL_S
    lease.release()
    workspace.write("new.md", "# New\n\nA document that the dead one did not get to.\n")
    done = workspace.command("refresh", "--json", environ=ENVIRON)
    assert done.returncode == 0 and last_json(done)["documents"]["new"] == 1
    if end == signal.SIGSTOP:
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.stdout is not None and holder.stdout.readline() == "lost\n"


def test_refresh_waits_takes_over_and_finishes(workspace: Workspace, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    workspace.write("new.md", "# New\n\nA document that the dead one did not get to.\n")
    done = workspace.command("refresh", "--json", environ=ENVIRON)
    assert done.returncode == 0 and last_json(done)["documents"]["new"] == 1
    assert "waiting up to 3 s" in done.stderr


def test_status_without_the_server_of_the_lease(workspace: Workspace) -> None:
    """What is published can be read all the same; that nothing can be written is said."""
    status = read_status(workspace.load(f"lease.url=redis://127.0.0.1:{find_free_port()}/0", "lease.ttl_s=1"))
    assert (status.health, status.exit_code, status.lease) == ("degraded", 3, None)
    assert "nothing can be written" in status.reason and status.pointer is not None


@pytest.mark.parametrize("kind", ["etcd", "postgres", "local", "object"])
def test_pointer_and_lease_in_a_server(tmp_path: Path, request: pytest.FixtureRequest, kind: RegisterKind) -> None:
    options: dict[str, str] = {}
    if kind == "local":
        server = str(tmp_path / "agree")
    elif kind == "object":
        s3 = find_server(request, "s3")
        server, options = f"s3://{make_bucket(s3)}/agree", describe_s3(s3)
    else:
        server = find_server(request, kind).url
    location = Location.parse(tmp_path / "store", options, server=server)
    with pytest.raises(StoreNotFound):
        FeatureStore.open(location)
    store = FeatureStore.open_or_create(location, dim=DIM)
    publish(store, {"a": ["1"]})
    assert read_contents(publish(store, {"b": ["2"]})) == {"a": ["1"], "b": ["2"]}
    assert not (tmp_path / "store" / "pointer").exists() and not (tmp_path / "store" / "lease").exists()
    with pytest.raises(ConfigError, match="LODESTREAM__LEASE__URL"):
        FeatureStore.open(str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"lease\.url"):
        FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM)
    # The name of the store in its server goes with the folder.
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = FeatureStore.open(Location.parse(tmp_path / "moved", options, server=server))
    assert read_contents(moved.open_snapshot()) == {"a": ["1"], "b": ["2"]}
    # Two stores in one server do not meet.
    other = FeatureStore.open_or_create(Location.parse(tmp_path / "other", options, server=server), dim=DIM)
    assert other.pointer().sequence == 0


def test_a_store_that_keeps_its_pointer_stays_so(tmp_path: Path) -> None:
    publish(FeatureStore.open_or_create(str(tmp_path / "store"), dim=DIM), {"a": ["1"]})
    elsewhere = Location.parse(tmp_path / "store", server=str(tmp_path / "agree"))
    for attempt in (FeatureStore.open, lambda place: FeatureStore.open_or_create(place, dim=DIM)):
        with pytest.raises(ConfigError, match="kept with its data"):
            attempt(elsewhere)
    assert not (tmp_path / "store" / MARKER_NAME).exists()


def test_redis_keeps_the_lease_alone(tmp_path: Path, redis_server: object, request: pytest.FixtureRequest) -> None:
    """A Redis that was wiped hands out the lease a second time: the first writer stops, and nothing is lost."""
    import redis

    url = find_server(request, "redis").url
    location = Location.parse(tmp_path / "store", server=url)
    store = FeatureStore.open_or_create(location, dim=DIM)
    publish(store, {"a": ["1"]})
    assert (tmp_path / "store" / "pointer").exists() and not (tmp_path / "store" / "lease").exists()
    lease = take_lease(store)
    described = {"kind": "refresh", "feature_version": "f1", "recipe": {}}
    first = store.begin(lease=lease, run_id="first", **described)  # type: ignore[arg-type]
    write(first, {"b": ["2"]})
    redis.Redis.from_url(url).flushall()
    second = begin(store, run_id="second")
    assert second.epoch == lease.epoch + 1 and second.resumed
    with pytest.raises(FencedError):
        write(first, {"c": ["3"]})
    lease.renew()
    with pytest.raises(LeaseLost):
        write(first, {"c": ["3"]})
    second.publish(checkpoint={}, run={})
    assert read_contents(FeatureStore.open(str(tmp_path / "store")).open_snapshot()) == {"a": ["1"], "b": ["2"]}
    assert open_lease(location, ttl_s=1.0).read() is not None
