"""What must hold before Ray Serve answers without a token."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lodestream.errors import ConfigError, ExecutorError
from lodestream.pipeline.config.settings import load_config, write_initial_config
from lodestream.pipeline.serve import ray_server
from lodestream.pipeline.serve.ray_server import check_listeners, run_ray_server

NONE = range(0)


def test_a_port_of_the_loopback_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_listeners(server.getsockname()[1], NONE)


@pytest.mark.parametrize("is_replica", [False, True])
def test_a_port_that_others_reach_does_not(is_replica: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner, socket.create_server(("0.0.0.0", 0)) as outer:
        port, replica = inner.getsockname()[1], outer.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {replica} is listened on at 0.0.0.0, and there is no token"):
            check_listeners(*((port, range(replica, replica + 1)) if is_replica else (replica, NONE)))


def test_what_cannot_be_told_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(ports: object) -> list[object]:
        raise FileNotFoundError("/proc/net/tcp")

    monkeypatch.setattr(ray_server, "list_listeners", fail)
    with pytest.raises(ConfigError, match="cannot be told"):
        check_listeners(1, NONE)


def test_nobody_who_listens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_server, "_PROXY_START_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ExecutorError, match=f"does not listen on port {port}"):
        check_listeners(port, NONE)


@pytest.mark.parametrize("setting", ["serve.host=0.0.0.0", "run.ray_address=192.0.2.1:6379"])
def test_without_a_token_nothing_starts_that_others_reach(tmp_path: Path, setting: str) -> None:
    write_initial_config(tmp_path, source_path=".")
    loaded = load_config(start=tmp_path, overrides=[setting], environ={})
    with pytest.raises(ConfigError) as refused:
        run_ray_server(loaded, replicas=1, announce=lambda url, readiness: None)
    assert "serve.token_file" in refused.value.hint
