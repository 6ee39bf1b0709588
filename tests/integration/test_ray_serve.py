"""``lodestream serve --ray`` as a user starts it: the answers of the form with one process, reached from here only, and
what happens to requests when a replica dies or the whole is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil
import pytest

from lodestream.pipeline.serve.listeners import list_listeners
from tests.support.served import serve_http, wait_until
from tests.support.workspace import Workspace, command_environ, short_topics

REPLICAS = 2
CALLERS = 4
START_S = 240
DOCUMENTS = short_topics(4)
LONG_TEXT = "\n\n".join(DOCUMENTS.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The command, and where it answers."""

    process: subprocess.Popen[str]
    url: str
    workspace: Workspace

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def list_replicas(self) -> list[psutil.Process]:
        """The processes that answer."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.is_running() and child.name().startswith("ray::ServeRepli")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    workspace = Workspace.create(tmp_path_factory.mktemp("ray") / "work", DOCUMENTS)
    workspace.run()
    command = [sys.executable, "-m", "lodestream", "serve", "--ray", "--replicas", str(REPLICAS), "--port", "0"]
    environ = command_environ() | {"RAY_AUTH_MODE": "token", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    with (
        (workspace.root / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=workspace.root, env=environ, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
        reader.start()
        ends = time.monotonic() + START_S
        while len(lines) < 2:
            assert process.poll() is None and time.monotonic() < ends, (workspace.root / "log").read_text()
            time.sleep(0.1)
        assert lines[0].startswith("ready: snapshot 1"), lines
        url = next(word for word in lines[1].split() if word.startswith("http://"))
        yield Running(process=process, url=url, workspace=workspace)
        if process.poll() is None:
            process.terminate()
        process.wait(START_S)
        reader.join()


def ask(url: str, method: str, path: str, **options: Any) -> tuple[int, str, Any]:
    """Status, kind and content of an answer."""
    answer = httpx2.request(method, f"{url}{path}", timeout=60, **options)
    kind = answer.headers["content-type"]
    return answer.status_code, kind, answer.json() if "json" in kind else answer.content


def test_it_is_reached_from_this_machine_only(running: Running) -> None:
    replicas = running.list_replicas()
    assert len(replicas) == REPLICAS
    own = {bound.laddr.port for replica in replicas for bound in replica.net_connections() if not bound.raddr}
    listeners = [found for found in list_listeners({running.port, *own}) if found.is_loopback]
    # Ray's own ports, which want its token, are not of the loopback; those that answer over HTTP are.
    assert running.port in {found.port for found in listeners}
    assert len({found.port for found in listeners} & own) == REPLICAS
    assert {found.port for found in list_listeners({running.port}) if not found.is_loopback} == set()


def test_answers_are_those_of_one_process(running: Running) -> None:
    ids = [*DOCUMENTS, "not-there.md"]
    arrow = {"accept": "application/vnd.apache.arrow.stream"}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/v1/features/{ids[0]}", {}),
        ("GET", "/v1/features/not-there.md", {}),
        ("POST", "/v1/features:get", {"json": {"ids": ids, "encoding": "base64"}}),
        ("POST", "/v1/features:get", {"json": {"ids": ids}, "headers": arrow}),
        ("POST", "/v1/encode", {"json": {"texts": ["One line.", LONG_TEXT, ""], "encoding": "int8"}}),
        ("POST", "/v1/embeddings", {"json": {"input": ["One line."], "model": "lodestream"}}),
        ("POST", "/v1/search", {"json": {"query": "how are names bound?", "limit": 3}}),
        ("POST", "/v1/search", {"json": {"query": "x", "limit": 0}}),
        ("POST", "/v1/density", {"json": {"texts": [LONG_TEXT]}}),
        ("GET", "/v1/snapshots", {}),
        ("GET", "/livez", {}),
    ]
    with serve_http(running.workspace.load()) as served:
        for method, path, options in asked:
            there, here = (ask(url, method, path, **options) for url in (running.url, served.url))
            if isinstance(here[2], dict):
                for answer in (there[2], here[2]):
                    answer.pop("request_id", None)
            assert there == here, path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request: when it was sent, and whether it was answered."""

    at: float
    status: int


def call_on(url: str, path: str, stop: threading.Event, sent: list[Sent]) -> None:
    """Sends one request after the other."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            at = time.monotonic()
            try:
                status = client.get(path).status_code
            except httpx2.HTTPError:
                status = 0
            sent.append(Sent(at=at, status=status))


def test_a_replica_that_dies_takes_only_its_own_requests_along(running: Running) -> None:
    stop = threading.Event()
    sent: list[Sent] = []
    path = f"/v1/features/{next(iter(DOCUMENTS))}"
    callers = [threading.Thread(target=call_on, args=(running.url, path, stop, sent)) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        wait_until(lambda: len(sent) > 20 * CALLERS)
        victim = running.list_replicas()[0]
        victim.kill()
        victim.wait(60)
        gone_at = time.monotonic()
        wait_until(lambda: sum(request.at > gone_at for request in list(sent)) > 50 * CALLERS)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    failed = [request for request in sent if request.status != 200]
    assert len(failed) <= CALLERS
    assert all(request.at <= gone_at for request in failed), "sent after the replica had died"


def test_what_is_under_way_is_answered_when_it_is_told_to_stop(running: Running) -> None:
    texts = [" ".join(f"{word}{number}" for word in ("ore", "vein", "lode")) * 20 + "." for number in range(60)]
    answers: list[int] = []

    def encode() -> None:
        answers.append(httpx2.post(f"{running.url}/v1/encode", json={"texts": texts}, timeout=120).status_code)

    caller = threading.Thread(target=encode)
    caller.start()
    me = psutil.Process()
    wait_until(lambda: any(open_.raddr and open_.raddr.port == running.port for open_ in me.net_connections()))
    time.sleep(0.3)
    begun_before = not answers
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.process.wait(START_S) == 0
    caller.join()
    assert begun_before and answers == [200]
    assert list_listeners({running.port}) == []
