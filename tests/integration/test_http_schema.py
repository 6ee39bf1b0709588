"""What the OpenAPI document says against what the endpoint does: requests made from it, good ones and bad ones."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.support.served import Served

EXAMPLES = 20
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_that_the_document_allows_or_forbids_breaks_the_server(served: Served, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get" and "{id}" not in operation.path:
            continue
        send(operation, mode)
        tried.append(operation.path)
    assert len(tried) >= 6
    wanted = 200 if mode is GenerationMode.POSITIVE else 422
    counts = served.client.get("/metrics").text
    for route in ("features:get", "encode", "embeddings", "search", "density"):
        assert f'route="/v1/{route}",status="{wanted}"' in counts
    assert served.service.follower.trouble is None


def send(operation: Any, mode: GenerationMode) -> None:
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            mend(case)
        response = case.call()
        case.validate_response(response, checks=CHECKS)

    check()


def mend(case: Any) -> None:
    """What the document cannot say: either this or that, and names that are there."""
    if case.path == "/v1/search":
        case.body = {"query": "words"} | {
            n: v for n, v in case.body.items() if n not in ("vector", "source", "snapshot")
        }
    if case.path == "/v1/embeddings":
        case.body = {"input": "words"} | case.body | {"model": "lodestream", "dimensions": None}
