"""The servers that other tests stand on: they answer, keep what they should over a restart, and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import obstore
import psycopg
import pytest
import redis
from etcd3gw.client import Etcd3Client
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

from tests.support import servers
from tests.support.servers import Server


def test_redis_forgets(redis_server: Server) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.set("a", "1")
    redis_server.stop()
    redis_server.start()
    assert client.get("a") is None
    client.close()


def test_etcd_keeps(etcd_server: Server) -> None:
    client = Etcd3Client("127.0.0.1", etcd_server.port, timeout=5)
    client.put("a", "1")
    etcd_server.kill()
    etcd_server.start()
    assert client.get("a") == [b"1"]
    client.session.close()


def test_postgres_keeps(postgres_server: Server, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("create table kept (value int)")
        connection.execute("insert into kept values (7)")
    postgres_server.stop()
    postgres_server.start()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select value from kept").fetchone() == (7,)


def test_s3_honours_conditions(s3_bucket: str, s3_options: dict[str, str]) -> None:
    store = S3Store(s3_bucket, config=s3_options)
    first = obstore.put(store, "a", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a", b"2", mode="create")
    obstore.put(store, "a", b"3", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(store, "a", b"4", mode={"e_tag": first["e_tag"]})
    assert bytes(obstore.get(store, "a").bytes()) == b"3"


SERVE = """
import sys, time
from tests.support import servers
with servers.{runner}() as server:
    print(server.process.pid, server.folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("runner", ["run_redis", "run_etcd", "run_postgres", "run_s3"])
def test_ends_with_a_killed_session(runner: str, repository: Path) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(runner=runner)], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    assert session.stdout is not None
    pid = int(session.stdout.readline().split()[0])
    session.send_signal(signal.SIGKILL)
    session.wait()
    session.stdout.close()
    give_up_at = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < give_up_at, f"{runner}: process {pid} outlives its session"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or between, opening and reading
        return False


@pytest.mark.parametrize("in_ci", [True, False])
def test_missing_server(monkeypatch: pytest.MonkeyPatch, in_ci: bool) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CI", "true" if in_ci else "")
    run: Callable[[], AbstractContextManager[Server]] = servers.run_redis
    with (
        pytest.raises(pytest.fail.Exception if in_ci else pytest.skip.Exception, match="apt-get install redis-server"),
        run(),
    ):
        raise AssertionError(os.environ["PATH"])
