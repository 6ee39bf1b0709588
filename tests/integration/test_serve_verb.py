"""``lodestream serve`` as a user starts and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.served import DOCUMENTS, wait_until
from tests.support.workspace import Workspace, command_environ

TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.create(tmp_path_factory.mktemp("verb"), DOCUMENTS)
    made.run()
    return made


@contextmanager
def started(workspace: Workspace, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The running command, and the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lodestream", "serve", "--port", "0", "--json", *arguments],
        cwd=workspace.root,
        env=command_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def test_says_where_and_ends_after_the_requests_under_way(workspace: Workspace) -> None:
    with started(workspace) as (process, said):
        assert (said["status"], said["snapshot"]) == ("ready", 1)
        with httpx.Client(base_url=said["url"], timeout=60) as client:
            assert client.get("/v1/features/wool.md").status_code == 200
            answers: list[httpx.Response] = []
            # Long enough that it is under way when the signal comes.
            texts = [f"{number} " + "Sheep are shorn in spring and not in autumn. " * 100 for number in range(12)]
            asking = threading.Thread(
                target=lambda: answers.append(httpx.post(f"{said['url']}/v1/encode", json={"texts": texts}, timeout=60))
            )
            asking.start()
            wait_until(lambda: "lodestream_encode_waiting 0" not in client.get("/metrics").text or bool(answers))
            process.send_signal(signal.SIGTERM)
            asking.join()
        assert [answer.status_code for answer in answers] == [200]
        process.wait(timeout=60)
        assert process.returncode == -signal.SIGTERM


def test_ctrl_c_ends_it_without_a_trace(workspace: Workspace) -> None:
    command = [sys.executable, "-m", "lodestream", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=workspace.root, env=command_environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready: snapshot 1 is served\n"
    assert process.stdout.readline().startswith("  open http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "stopped\n"
    assert errors == ""


def test_an_address_that_others_reach_wants_a_token(workspace: Workspace, tmp_path: Path) -> None:
    refused = workspace.command("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "can be reached from other machines, and there is no token" in refused.stderr
    short = tmp_path / "short"
    short.write_text("abc\n")
    refused = workspace.command("serve", "--port", "0", "--set", f"serve.token_file={short}")
    assert refused.returncode == 2
    assert "16 characters or more" in refused.stderr
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with started(workspace, "--set", f"serve.token_file={tmp_path / 'token'}") as (_, said):
        assert httpx.get(f"{said['url']}/v1/status").status_code == 401
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{said['url']}/v1/status", headers=bearer).status_code == 200


def test_a_port_that_is_taken_is_said(workspace: Workspace) -> None:
    with started(workspace) as (_, said):
        port = said["url"].rpartition(":")[2]
        refused = workspace.command("serve", "--port", port)
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in refused.stderr


def test_the_token_is_not_shown(workspace: Workspace) -> None:
    environ = {**os.environ, "LODESTREAM__SERVE__TOKEN": TOKEN}
    shown = workspace.command("config", "show", environ=environ)
    assert shown.returncode == 0
    assert TOKEN not in shown.stdout
    assert "***" in shown.stdout
