"""Callers that are slow, leave early, send rubbish or too much: refused or dropped, and the endpoint goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import orjson
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.served import POLL, Served, serve_http, wait_until
from tests.support.workspace import Workspace

POSTS = ("features:get", "encode", "embeddings", "search", "density")


@pytest.fixture(scope="module")
def hardy(http_workspace: Workspace) -> Iterator[Served]:
    with serve_http(http_workspace.load(POLL, "serve.request_timeout=2s", "serve.max_body_bytes=4MiB")) as started:
        wait_until(lambda: started.client.get("/readyz").status_code == 200)
        yield started


def connect(served: Served) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


def head(served: Served, path: str, *lines: str) -> bytes:
    host = urlsplit(served.url).netloc
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("ids", "texts", "query", "vector", "input", "model", "snapshot", "encoding", "limit", "granularity")
rubbish = st.one_of(
    st.binary(max_size=200),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), values).map(lambda value: json.dumps(value).encode()),
)


@given(st.sampled_from(POSTS), rubbish)
@settings(max_examples=150)
def test_rubbish_is_a_problem_and_never_a_failure(hardy: Served, route: str, body: bytes) -> None:
    answer = hardy.client.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 404, 413, 422), (answer.status_code, body, answer.text)
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("field", ["ids", "texts"])
def test_a_long_list_of_wrong_items_costs_no_more_than_reading_it(hardy: Served, field: str) -> None:
    route = "features:get" if field == "ids" else "encode"
    body = orjson.dumps({field: [1] * 1_500_000})
    before_s = psutil.Process().cpu_times().user
    answer = hardy.client.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 1
    assert len(answer.content) < 2000
    assert psutil.Process().cpu_times().user - before_s < 3


def test_ten_thousand_ids_are_refused_and_a_thousand_answered(hardy: Served) -> None:
    ids = [f"none/{number}" for number in range(10_000)]
    assert hardy.client.post("/v1/features:get", json={"ids": ids}).status_code == 413
    answer = hardy.client.post("/v1/features:get", json={"ids": ids[:1000]})
    assert {result["status"] for result in answer.json()["results"]} == {"NOT_FOUND"}


def test_a_body_that_does_not_arrive_is_given_up(hardy: Served) -> None:
    with connect(hardy) as connection:
        connection.sendall(head(hardy, "/v1/search", "Content-Length: 1000") + b'{"query"')
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"did not arrive in time" in answer


@pytest.mark.parametrize("declared", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_a_body_without_end_is_cut_off(hardy: Served, declared: str) -> None:
    with connect(hardy) as connection:
        connection.sendall(head(hardy, "/v1/search", declared))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            for _ in range(200):
                connection.sendall(chunk)
        except OSError:
            return  # it has hung up: as good as an answer
        assert b"HTTP/1.1 413" in connection.recv(4096)


def test_who_leaves_early_leaves_nothing_behind(hardy: Served) -> None:
    body = orjson.dumps({"texts": [f"{number} " + "Sheep are shorn in spring. " * 60 for number in range(8)]})
    for _ in range(20):
        with connect(hardy) as connection:
            connection.sendall(head(hardy, "/v1/encode", f"Content-Length: {len(body)}") + body)
    view = hardy.service.follower.latest
    assert view is not None
    assert view.encoding is not None
    encoding = view.encoding
    wait_until(lambda: encoding.count()["waiting"] == 0)
    wait_until(lambda: view.num_users == 1)
    assert hardy.client.post("/v1/encode", json={"texts": ["still here"]}).status_code == 200
    assert 'status="500"' not in hardy.client.get("/metrics").text


def test_connections_that_say_nothing_keep_nobody_from_being_answered(hardy: Served) -> None:
    idle = [connect(hardy) for _ in range(200)]
    try:
        started = time.monotonic()
        with httpx.Client(base_url=hardy.url, timeout=30) as fresh:
            assert fresh.get("/v1/features/wool.md").status_code == 200
        assert time.monotonic() - started < 30
    finally:
        for connection in idle:
            connection.close()
