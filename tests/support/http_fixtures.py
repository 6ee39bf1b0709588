"""An endpoint over a few documents, one of them in quarantine, for the tests of the routes."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pyarrow as pa
import pytest

from lodestream.pipeline.serve import models
from tests.support.served import BROKEN, DOCUMENTS, POLL, Served, serve_http
from tests.support.workspace import Workspace

ARROW = {"accept": "application/vnd.apache.arrow.stream"}


@pytest.fixture(scope="session")
def http_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace.create(tmp_path_factory.mktemp("http"), DOCUMENTS | {"notes/größe & co.md": "Größen und Maße."})
    made.write("broken.md", BROKEN)
    made.run()
    return made


@pytest.fixture(scope="session")
def served(http_workspace: Workspace) -> Iterator[Served]:
    limits = ("serve.max_ids=20", "serve.max_texts=8", "serve.max_body_bytes=64KiB", "serve.max_text_tokens=100")
    with serve_http(http_workspace.load(POLL, *limits)) as started:
        yield started


@pytest.fixture(scope="session")
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
