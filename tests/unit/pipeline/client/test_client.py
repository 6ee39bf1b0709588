"""The client against a scripted server on the loopback: what it sends, what it tries again, which errors come out."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import lodestream
from lodestream.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    LodestreamError,
    NotFoundError,
    Overloaded,
    RequestInvalid,
    RequestTooLarge,
    ServeError,
    ServiceUnavailable,
)
from lodestream.pipeline.client.calls import decode_vector
from lodestream.pipeline.serve.models import Feature
from tests.support.workspace import REPOSITORY, run_python

Reply = tuple[int, dict[str, str], bytes] | None  # None: the connection breaks


@dataclass(kw_only=True)
class Script:
    """Replies in their order, the last one for ever; and what was asked."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def answer(self, status: int, body: Any = None, **headers: str) -> Script:
        """Adds a reply; a dictionary becomes JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.replies.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, content))
        return self

    def next(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            script.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            reply = script.next()
            if reply is None:
                self.close_connection = True
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _reply

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


def ask_sync(script: Script, method: str, *args: Any, options: dict[str, Any], **values: Any) -> Any:
    with lodestream.Client(script.url, **options) as client:
        return getattr(client, method)(*args, **values)


def ask_async(script: Script, method: str, *args: Any, options: dict[str, Any], **values: Any) -> Any:
    async def main() -> Any:
        async with lodestream.AsyncClient(script.url, **options) as client:
            return await getattr(client, method)(*args, **values)

    return asyncio.run(main())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest, script: Script) -> Callable[..., Any]:
    """``ask(method, ...)`` of either client; ``options`` are the client's."""

    def call(method: str, *args: Any, options: dict[str, Any] | None = None, **values: Any) -> Any:
        return request.param(script, method, *args, options=options or {}, **values)

    return call


HITS = {"snapshot": 7, "feature_version": "ab", "hits": []}


def test_calls_send_what_the_routes_take(script: Script, ask: Callable[..., Any]) -> None:
    script.answer(200, HITS)
    assert ask("search", "imports", limit=3, min_density=0.5, options={"token": "s3cret"}).snapshot == 7
    method, path, headers, body = script.asked[0]
    assert (method, path, headers["authorization"]) == ("POST", "/v1/search", "Bearer s3cret")
    assert json.loads(body) == {
        "query": "imports", "limit": 3, "granularity": "paragraph", "min_density": 0.5, "headings": False,
        "snapshot": "latest", "exact": False,
    }  # fmt: skip
    ask("search", np.array([0.5, -1], np.float32))
    assert json.loads(script.asked[1][3])["vector"] == [0.5, -1.0]
    assert "authorization" not in script.asked[1][2]

    script.replies.clear()
    script.answer(200, {"id": "a b/ü?#.md", "status": "FOUND"})
    assert ask("get_document", "a b/ü?#.md").status == "FOUND"
    assert script.asked[-1][1] == "/v1/features/a%20b/%C3%BC%3F%23.md"

    script.replies.clear()
    script.answer(200, {"snapshot": 7, "feature_version": "ab", "results": []})
    assert ask("get", ("a", "b"), granularities=("document",), snapshot=7).results == []
    assert json.loads(script.asked[-1][3]) == {
        "ids": ["a", "b"], "granularities": ["document"], "snapshot": 7, "encoding": "base64",
    }  # fmt: skip


def test_embeddings_are_an_array(script: Script, ask: Callable[..., Any]) -> None:
    vectors = np.arange(6, dtype="<f4").reshape(2, 3)
    script.answer(200, {"data": [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in vectors]})
    found = ask("embed", ["a", "b"], role="query")
    assert np.array_equal(found, vectors) and found.dtype == np.float32
    assert json.loads(script.asked[0][3])["input_type"] == "query"


def test_tables_of_many_ids_are_of_one_snapshot(script: Script, ask: Callable[..., Any]) -> None:
    table = pa.table({"doc_id": ["a"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    script.answer(200, sink.getvalue().to_pybytes(), X_Snapshot="41")
    assert ask("as_table", ids=[f"{n}.md" for n in range(1100)]).num_rows == 3
    sent = [json.loads(body) for *_, body in script.asked]
    assert [len(request["ids"]) for request in sent] == [500, 500, 100]
    assert [request["snapshot"] for request in sent] == ["latest", 41, 41]
    assert all(headers["accept"] == "application/vnd.apache.arrow.stream" for _, _, headers, _ in script.asked)
    with pytest.raises(RequestInvalid, match="either ids or texts"):
        ask("as_table")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_by_itself_is_tried_again(script: Script, ask: Callable[..., Any], status: int) -> None:
    script.answer(status, b"<html>", Retry_After="0.01").answer(200, HITS)
    assert ask("search", "x").snapshot == 7
    assert len(script.asked) == 2


def test_a_broken_connection_is_tried_again(script: Script, ask: Callable[..., Any]) -> None:
    script.replies += [None, None]
    script.answer(200, HITS)
    assert ask("search", "x").snapshot == 7
    assert len(script.asked) == 3


PROBLEM = {"type": "about:blank", "title": "t", "status": 0, "detail": "what happened", "hint": "do this"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ServeError),
        (401, AccessDenied),
        (404, NotFoundError),
        (413, RequestTooLarge),
        (422, RequestInvalid),
        (500, ServeError),
    ],
)
def test_what_does_not_pass_is_an_error_at_once(
    script: Script, ask: Callable[..., Any], status: int, kind: type[LodestreamError]
) -> None:
    script.answer(status, PROBLEM | {"status": status}, Content_Type="application/problem+json")
    with pytest.raises(LodestreamError) as raised:
        ask("search", "x")
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.hint) == ("what happened", "do this")
    assert len(script.asked) == 1


def test_attempts_end_and_the_last_answer_is_the_error(script: Script, ask: Callable[..., Any]) -> None:
    script.answer(429, PROBLEM | {"status": 429}, Retry_After="0.02")
    with pytest.raises(Overloaded) as raised:
        ask("search", "x", options={"max_attempts": 3})
    assert (len(script.asked), raised.value.retry_after_s) == (3, 0.02)


def test_a_longer_wait_than_allowed_is_left_to_the_caller(script: Script, ask: Callable[..., Any]) -> None:
    script.answer(503, PROBLEM | {"status": 503}, Retry_After="120")
    with pytest.raises(ServiceUnavailable) as raised:
        ask("search", "x")
    assert (len(script.asked), raised.value.retry_after_s) == (1, 120.0)


def test_readiness_is_an_answer_also_where_it_is_no(script: Script, ask: Callable[..., Any]) -> None:
    script.answer(503, {"status": "empty", "reason": "nothing is published"})
    assert ask("readiness", options={"max_attempts": 1}).status == "empty"


def test_an_answer_of_somebody_else_is_said_to_be_that(script: Script, ask: Callable[..., Any]) -> None:
    script.answer(200, b"<html>welcome</html>")
    with pytest.raises(ServeError, match="not that of a lodestream endpoint"):
        ask("search", "x")


def test_nobody_there(ask: Callable[..., Any], script: Script) -> None:
    script.url = "http://127.0.0.1:1"
    with pytest.raises(ServiceUnavailable, match="cannot reach http://127.0.0.1:1"):
        ask("snapshots", options={"max_attempts": 2})


def test_no_answer_in_time_is_not_tried_again(ask: Callable[..., Any], script: Script) -> None:
    wait = threading.Event()
    script.next = lambda: wait.wait(60) and None  # type: ignore[assignment,method-assign]
    try:
        with pytest.raises(DeadlineExceeded, match="within 0.05 s"):
            ask("snapshots", options={"timeout_s": 0.05})
        assert len(script.asked) <= 1
    finally:
        wait.set()


def test_mistakes_are_found_before_anything_is_sent(ask: Callable[..., Any], script: Script) -> None:
    with pytest.raises(RequestInvalid, match="limit"):
        ask("search", "x", limit=0)
    with pytest.raises(ConfigError, match="not the address"):
        lodestream.Client("localhost:8750")
    with pytest.raises(ConfigError, match="more than 0"):
        lodestream.Client(max_attempts=0)
    assert not script.asked


def test_every_encoding_is_decoded() -> None:
    place: dict[str, Any] = {"granularity": "document", "ordinal": 0, "parent": -1, "kind": "", "char_start": 0}
    place |= {"char_end": 1, "token_count": 1, "density": 0.5}
    floats = np.array([0.5, -2.0], "<f4")
    for values in (
        {"vector": [0.5, -2.0]},
        {"vector": base64.b64encode(floats.tobytes()).decode()},
        {"codes": base64.b64encode(np.array([1, -4], np.int8).tobytes()).decode(), "scale": 0.5},
    ):
        assert np.array_equal(decode_vector(Feature(**place, **values)), floats)
    with pytest.raises(RequestInvalid):
        decode_vector(Feature(**place))


def test_without_its_packages_the_client_says_what_to_install() -> None:
    code = "import sys; sys.modules['httpx2'] = None; import lodestream; lodestream.Client"
    done = run_python(REPOSITORY, code)
    assert "ConfigError: the client needs httpx2" in done.stderr
    assert "pip install 'lodestream[client]'" in done.stderr
