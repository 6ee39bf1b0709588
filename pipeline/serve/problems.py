"""Errors as the caller gets them: problem+json (RFC 9457) for each, one table from error to status, no traces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from lodestream.errors import (
    AccessDenied,
    ConfigError,
    DocumentError,
    LodestreamError,
    NotFoundError,
    ServeError,
    StoreError,
    Transient,
)
from lodestream.pipeline.serve.models import PROBLEM_JSON
from lodestream.pipeline.serve.notes import NOTES, Notes
from lodestream.pipeline.serve.rendering import to_json

_STATUSES: Final[tuple[tuple[type, int], ...]] = (
    (NotFoundError, 404),
    (DocumentError, 422),
    (Transient, 503),
    (StoreError, 503),
    (ConfigError, 503),
)
_RETRY_AFTER_S: Final = 5.0
_MAX_ERRORS: Final = 20
_WORD_BEGINS: Final = re.compile(r"(?<!^)(?=[A-Z])")


def find_status(error: LodestreamError) -> int:
    """The status that an error is answered with."""
    if isinstance(error, ServeError):
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def describe_error(error: LodestreamError, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for an error."""
    status = find_status(error)
    retry_after_s = error.retry_after_s if isinstance(error, ServeError) else 0.0
    if status in (429, 503) and not retry_after_s:
        retry_after_s = _RETRY_AFTER_S
    headers = {"content-type": PROBLEM_JSON, "cache-control": "no-store"}
    if retry_after_s:
        headers["retry-after"] = str(max(1, round(retry_after_s)))
    if isinstance(error, AccessDenied):
        headers["www-authenticate"] = 'Bearer realm="lodestream"'
    name = _WORD_BEGINS.sub(" ", type(error).__name__.removesuffix("Error"))
    body = describe_problem(status, name, error.message, request_id, hint=error.hint)
    return status, headers, body


def describe_problem(
    status: int,
    title: str,
    detail: str,
    request_id: str,
    *,
    hint: str = "",
    errors: Sequence[dict[str, Any]] = (),
) -> bytes:
    """The body of models.Problem."""
    values: dict[str, Any] = {
        "type": f"urn:lodestream:problem:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "message": f"{detail}; {hint}" if hint else detail,
        "request_id": request_id,
    }
    if hint:
        values["hint"] = hint
    if errors:
        values["errors"] = errors
    return to_json(values)


def add_problem_handlers(app: FastAPI) -> None:
    """Makes every error that a route raises a problem."""
    app.add_exception_handler(LodestreamError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LodestreamError)
    status, headers, body = describe_error(error, _request_id(request))
    return Response(body, status_code=status, headers=headers)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Where and what, without the value: that may be long, and the caller has it.
    errors = [
        {"where": [str(part) for part in item["loc"]], "message": str(item["msg"]), "type": str(item["type"])}
        for item in error.errors()[:_MAX_ERRORS]
    ]
    first = errors[0] if errors else {"where": ["body"], "message": "invalid"}
    detail = f"{'.'.join(first['where'])}: {first['message']}"
    body = describe_problem(422, "Request Invalid", detail, _request_id(request), errors=errors)
    return Response(body, status_code=422, media_type=PROBLEM_JSON)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = {404: "Not Found", 405: "Method Not Allowed", 400: "Bad Request"}.get(error.status_code, "Error")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    body = describe_problem(error.status_code, title, detail, _request_id(request))
    return Response(body, status_code=error.status_code, headers=dict(error.headers or {}), media_type=PROBLEM_JSON)


def _request_id(request: Request) -> str:
    notes = request.scope.get(NOTES)
    return notes.request_id if isinstance(notes, Notes) else ""
