"""The endpoint over real HTTP: errors, headers, probes, access and the page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from lodestream.errors import DeadlineExceeded, Overloaded, StoreUnreachable
from lodestream.pipeline import status
from lodestream.pipeline.serve import models
from lodestream.pipeline.serve.access import Access
from lodestream.pipeline.serve.gate import Gate
from lodestream.storage.pointer_reader import PointerReader
from tests.support.http_fixtures import expect_problem
from tests.support.served import BROKEN, DOCUMENTS, POLL, Served, serve_http, wait_until
from tests.support.workspace import Workspace

TOKEN = "a-token-that-is-long-enough"


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/features:get", {"ids": []}, 422),
        ("/v1/features:get", {"ids": ["x"], "granularities": ["word"]}, 422),
        ("/v1/features:get", {"ids": ["x"], "unknown": 1}, 422),
        ("/v1/features:get", {"ids": ["x"], "snapshot": 77}, 404),
        ("/v1/features:get", {"ids": ["x"], "snapshot": 2**70}, 422),
        ("/v1/features:get", {"ids": ["x" * 5000]}, 422),
        ("/v1/features:get", {"ids": ["x"] * 21}, 413),
        ("/v1/encode", {"texts": ["x"] * 9}, 413),
        ("/v1/encode", {"texts": ["word " * 101]}, 413),
        ("/v1/encode", {"texts": ["x" * 70_000]}, 413),
        ("/v1/search", {"query": "   "}, 422),
        ("/v1/search", {}, 422),
        ("/v1/search", {"query": "x", "limit": 0}, 422),
        ("/v1/search", {"vector": [0.0] * 384}, 422),
        ("/v1/search", {"vector": [1e308] * 384}, 422),
        ("/v1/density", {"texts": ["x"], "ids": ["y"]}, 422),
        ("/v1/embeddings", {"model": "lodestream", "input": ""}, 422),
        ("/v1/nothing", {}, 404),
        ("/v1/status", {}, 405),
    ],
)
def test_what_cannot_be_answered_is_a_problem(client: httpx.Client, path: str, body: Any, status: int) -> None:
    problem = expect_problem(client.post(path, json=body), status)
    assert problem.detail


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1,2", b'{"query": NaN}', b'{"query": "\\ud800"}', b"\xff\xfe", b"[" * 5000]
)
def test_torn_bodies_are_problems(client: httpx.Client, body: bytes) -> None:
    expect_problem(client.post("/v1/search", content=body, headers={"content-type": "application/json"}), 422)


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=2.0), 429), (DeadlineExceeded("late"), 504)]
)
def test_a_full_queue_and_a_late_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(served.service.encoding, "encode", fail)
    answer = served.client.post("/v1/encode", json={"texts": ["x"]})
    expect_problem(answer, status)
    assert answer.headers.get("retry-after") == ("2" if status == 429 else None)


def test_an_unforeseen_error_says_nothing_of_itself(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(served.service.rows, "get_held", fail)
    answer = served.client.get("/v1/features/wool.md")
    expect_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


def test_no_answer_in_time_is_504(http_workspace: Workspace) -> None:
    with serve_http(http_workspace.load(POLL, "serve.request_timeout=1ms")) as served:
        expect_problem(served.client.post("/v1/encode", json={"texts": ["word " * 400]}), 504)


def test_too_many_requests_at_once_are_503(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "_has_room", lambda _: False)
    answer = served.client.get("/v1/features/wool.md")
    expect_problem(answer, 503)
    assert answer.headers["retry-after"] == "1"
    assert served.client.get("/livez").status_code == 200


# ---- headers, probes -------------------------------------------------------------------------------------------------


def test_headers_tell_the_truth(client: httpx.Client) -> None:
    answer = client.post("/v1/search", json={"query": "sheep"}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    spans = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    times = {name: float(value) for name, value in spans.items()}
    assert set(times) == {"encode", "search", "total"}
    assert times["encode"] + times["search"] <= times["total"]
    status = client.get("/v1/status").json()
    assert abs(float(answer.headers["x-freshness-seconds"]) - status["freshness"]["lag_seconds"]) < 5
    evil = client.get("/livez", headers={"x-request-id": "a" * 200}).headers["x-request-id"]
    assert len(evil) == 16


def test_status_is_that_of_the_command_line(http_workspace: Workspace, client: httpx.Client) -> None:
    served = client.get("/v1/status").json()
    mine = json.loads(http_workspace.command("status", "--json").stdout)
    assert set(served) == set(mine) | {"serving"}
    assert served["health"] == mine["health"] == "degraded"
    assert served["snapshot"]["sequence"] == mine["snapshot"]["sequence"] == served["serving"]["snapshot"]


def test_snapshots_probes_and_metrics(client: httpx.Client) -> None:
    snapshots = models.SnapshotsAnswer.model_validate_json(client.get("/v1/snapshots").content).snapshots
    assert [(one.sequence, one.latest) for one in snapshots] == [(1, True)]
    assert client.get("/livez").text == "ok\n"
    readiness = models.Readiness.model_validate_json(client.get("/readyz").content)
    assert (readiness.status, readiness.snapshot) == ("ready", 1)
    client.get("/v1/features/none")
    text = client.get("/metrics").text
    assert 'lodestream_requests_total{method="GET",route="/v1/features/{id:path}",status="404"}' in text
    assert 'lodestream_rows_found_total{tier="' in text
    assert "lodestream_snapshot 1.0" in text


def test_an_empty_store_says_what_to_type_and_becomes_ready(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    with serve_http(workspace.load(POLL)) as served:
        answer = served.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["status"] == "empty"
        assert "lodestream run" in answer.json()["reason"]
        problem = served.client.post("/v1/features:get", json={"ids": ["wool.md"]})
        assert "lodestream run" in (expect_problem(problem, 503).hint or "")
        assert int(problem.headers["retry-after"]) > 0
        assert "empty" in served.client.get("/").text
        workspace.run()
        wait_until(lambda: served.client.get("/readyz").status_code == 200)
        assert served.client.get("/v1/features/wool.md").status_code == 200


# ---- access ----------------------------------------------------------------------------------------------------------


def test_without_the_token_only_the_probes_answer(http_workspace: Workspace) -> None:
    with serve_http(http_workspace.load(POLL), access=Access(TOKEN)) as served:
        client = served.client
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic !!"}, {"authorization": TOKEN}):
            answer = client.get("/v1/features/wool.md", headers=headers)
            expect_problem(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/", "/metrics", "/v1/status", "/openapi.json", "/nothing"):
            expect_problem(client.get(path), 401)
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code in (200, 503)
        bearer = {"authorization": f"Bearer {TOKEN}"}
        wait_until(lambda: client.get("/v1/features/wool.md", headers=bearer).status_code == 200)
        assert client.get("/", auth=("", TOKEN)).status_code == 200
        assert "Basic" in client.get("/").headers["www-authenticate"]


def test_without_a_token_only_names_of_this_machine_are_answered(served: Served) -> None:
    expect_problem(served.client.get("/v1/features/wool.md", headers={"host": "elsewhere.example"}), 401)
    assert served.client.get("/v1/features/wool.md", headers={"host": "localhost:1"}).status_code == 200


# ---- page ------------------------------------------------------------------------------------------------------------


def test_the_page_holds_everything_itself(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    assert "<script" not in page
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
    for part in ("degraded", "Freshness", "broken.md", "not UTF-8", "Density", "Cache", "Lease", "docs"):
        assert part in page


def test_what_documents_say_is_escaped(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.write("<script>alert(1)</script>.md".replace("/", "∕"), BROKEN)
    workspace.run()
    with serve_http(workspace.load(POLL)) as served:
        page = served.client.get("/").text
    assert "&lt;script&gt;" in page
    assert "<script" not in page


# ---- trouble ---------------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_reached_degrades_and_takes_nothing_away(
    http_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise StoreUnreachable("the bucket gives no answer", "look at the network")

    with serve_http(http_workspace.load(POLL)) as served:
        client = served.client
        wait_until(lambda: client.get("/readyz").status_code == 200)
        monkeypatch.setattr(PointerReader, "read", fail)
        monkeypatch.setattr(status, "read_pointer", fail)
        wait_until(lambda: client.get("/readyz").json()["status"] == "degraded")
        assert client.get("/readyz").status_code == 200
        assert "the bucket gives no answer; next: look at the network" in client.get("/readyz").json()["reason"]
        assert client.get("/v1/features/wool.md").status_code == 200
        assert client.post("/v1/search", json={"query": "sheep"}).status_code == 200
        assert "lodestream_degraded 1.0" in client.get("/metrics").text
        time.sleep(1.1)  # what was read of the status is kept for a second
        told = client.get("/v1/status").json()
        assert told["health"] == "degraded"
        assert "the bucket gives no answer" in told["reason"]
        assert told["snapshot"]["sequence"] == 1
        assert "the bucket gives no answer" in client.get("/").text
        monkeypatch.undo()
        wait_until(lambda: client.get("/readyz").json()["status"] == "ready")


def test_what_lags_behind_its_target_is_degraded(http_workspace: Workspace) -> None:
    with serve_http(http_workspace.load(POLL, "refresh.freshness_target=1ms")) as served:
        wait_until(lambda: served.client.get("/readyz").status_code == 200)
        assert served.client.get("/readyz").json()["status"] == "degraded"
        page = served.client.get("/").text
    assert "docs lags by" in page
    assert 'class="value late"' in page
