"""The client against the real endpoint: typed answers, arrays and tables that agree with the store, and errors."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest

import lodestream
from lodestream.actors.featurizer import Featurizer
from lodestream.errors import AccessDenied, NotFoundError, RequestInvalid, RequestTooLarge
from lodestream.pipeline.client.calls import decode_vector
from lodestream.pipeline.library import Library
from lodestream.storage.store import FeatureStore
from tests.support.served import DOCUMENTS, Served, serve_http, wait_until
from tests.support.workspace import Workspace

TOKEN = "a-token-of-the-tests"
MAX_IDS = 20_000


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.create(tmp_path_factory.mktemp("client") / "work", DOCUMENTS)
    workspace.run()
    return workspace


@pytest.fixture(scope="module")
def served(workspace: Workspace) -> Iterator[Served]:
    settings = (f"serve.token={TOKEN}", f"serve.max_ids={MAX_IDS}", "serve.max_texts=2000", "serve.request_timeout=60s")
    with serve_http(workspace.load(*settings)) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[lodestream.Client]:
    with lodestream.Client(served.url, token=TOKEN) as client:
        yield client


def test_features_are_those_of_the_store(client: lodestream.Client, workspace: Workspace) -> None:
    library = Library(FeatureStore.open(str(workspace.store)))
    table = client.as_table(ids=[*DOCUMENTS, "not-there.md"])
    for doc_id in DOCUMENTS:
        stored = library.get(doc_id)
        answer = client.get_document(doc_id)
        assert (answer.status, len(answer.features)) == ("FOUND", stored.num_rows)
        rows = [row for row in table.to_pylist() if row["id"] == doc_id]
        wanted = {(r["granularity"], r["ordinal"]): np.array(r["codes"], np.float32) for r in stored.to_pylist()}
        for feature in answer.features:
            codes = wanted[feature.granularity, feature.ordinal]
            assert np.allclose(decode_vector(feature), codes / np.linalg.norm(codes), atol=1e-3)
        assert len(rows) == stored.num_rows
    answers = client.get([*DOCUMENTS, "not-there.md"], granularities=["document"], encoding="int8")
    assert [result.status for result in answers.results] == ["FOUND"] * 3 + ["NOT_FOUND"]


def test_texts(client: lodestream.Client) -> None:
    text = DOCUMENTS["wool.md"]
    vectors = client.embed([text, "Sheep."], role="query")
    assert np.allclose(vectors[0], Featurizer().embed(text), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    encoded = client.encode([text], text_format="markdown")
    assert encoded.num_encoded_tokens == 0 < encoded.num_tokens, "the store has all of it"
    assert client.as_table(texts=[text], text_format="markdown").num_rows == len(encoded.results[0].features)
    assert client.density([text]).results[0].paragraphs


def test_search_status_and_the_rest(client: lodestream.Client) -> None:
    assert client.search("What is yarn made of?").hits[0].doc_id == "wool.md"
    assert client.search(client.embed(["thrust and fuel"])[0], limit=1).hits[0].doc_id == "rockets.md"
    assert client.readiness().status == "ready"
    assert client.status()["snapshot"]["sequence"] == client.snapshots().snapshots[0].sequence == 1


def test_errors(client: lodestream.Client, served: Served) -> None:
    with pytest.raises(NotFoundError):
        client.get_document("not-there.md")
    with pytest.raises(RequestInvalid, match="no-such"):
        client.search("x", source="no-such")
    with pytest.raises(RequestTooLarge):
        client.encode([f"word{n}" for n in range(2001)])
    for token in ("", "another-token-than-it", TOKEN[:-1]):
        with lodestream.Client(served.url, token=token) as other, pytest.raises(AccessDenied):
            other.search("x")


def test_many_ids_and_many_callers(served: Served, client: lodestream.Client) -> None:
    ids = [f"missing/{n}.md" for n in range(9_997)] + list(DOCUMENTS)
    answer = client.get(ids, granularities=["document"], encoding="int8")
    assert [result.id for result in answer.results] == ids
    assert sum(result.status == "FOUND" for result in answer.results) == len(DOCUMENTS)

    async def ask() -> list[np.ndarray]:
        async with lodestream.AsyncClient(served.url, token=TOKEN) as other:
            return list(await asyncio.gather(*(other.embed([f"Number {n}."]) for n in range(64))))

    alone = [client.embed([f"Number {n}."]) for n in (0, 63)]
    together = asyncio.run(ask())
    assert np.array_equal(together[0], alone[0]) and np.array_equal(together[63], alone[1])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client.search("yarn", limit=1).hits[0].doc_id, range(32)))
    assert found == ["wool.md"] * 32


def test_slow_gone_and_broken_callers_harm_nobody(served: Served, client: lodestream.Client) -> None:
    """Half requests, bodies that never come, callers that leave before the answer: the next one is answered as ever."""
    host, port = served.url.removeprefix("http://").split(":")
    texts = [f"word{n} " * 200 for n in range(200)]
    head = f"Host: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    body = '{"texts": [' + ", ".join(f'"{text}"' for text in texts) + "]}"
    pieces = [
        "GET /v1/features/wool.md HTTP/1.1\r\nHost: x",
        f"POST /v1/encode HTTP/1.1\r\n{head}Content-Length: 500\r\n\r\n{{",
        f"POST /v1/encode HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}",
        "\x00\x01\x02\r\n\r\n",
    ]
    sockets = []
    for piece in pieces * 5:
        sockets.append(socket.create_connection((host, int(port))))
        sockets[-1].sendall(piece.encode("latin-1"))
    threads = [threading.Thread(target=client.embed, args=([f"Beside them {n}."],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for connection in sockets:
        connection.close()
    for thread in threads:
        thread.join()
    assert client.search("yarn", limit=1).hits[0].doc_id == "wool.md"
    encoding = served.service.encoding
    assert encoding is not None
    wait_until(lambda: encoding.count()["queued_tokens"] == 0)
    counts = encoding.count()
    assert counts["waiting"] == 0
    assert 0 < counts["batches"] <= counts["batch_segments"] <= counts["batch_tokens"]
    with httpx2.Client(base_url=served.url, headers={"Authorization": f"Bearer {TOKEN}"}) as other:
        metrics = other.get("/metrics").text
    for name in ("queued_tokens 0.0", "batches_total", "batch_tokens_total", "wait_seconds_total", "run_seconds_total"):
        assert f"\nlodestream_encode_{name}" in metrics
    assert client.readiness().status == "ready"
