"""What every request passes first and last: its id, access, limits on body and number, headers, counts, and errors that
nobody foresaw."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lodestream.errors import DeadlineExceeded, LodestreamError, RequestTooLarge, ServiceUnavailable
from lodestream.pipeline.serve.access import Access
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.metrics import Metrics
from lodestream.pipeline.serve.models import PROBLEM_JSON
from lodestream.pipeline.serve.notes import NOTES, Notes, take_request_id
from lodestream.pipeline.serve.problems import describe_error, describe_problem

logger = logging.getLogger("lodestream.serve")

_SECURITY_HEADERS: Final = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_GONE: Final = 499  # the caller left before the answer: for the counts only
_BROWSER_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="lodestream: the token as password", charset="UTF-8"')


class CallerGone(Exception):
    """The caller has closed the connection."""


class Gate:
    """ASGI middleware, outermost. Reads the whole body, within its limit and in time, before any route runs."""

    def __init__(self, app: ASGIApp, *, access: Access, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _read_headers(scope["headers"])
        notes = Notes(request_id=take_request_id(headers.get("x-request-id", "")))
        scope[NOTES] = notes
        answer = _Answer(send, notes)
        counted = scope["path"].startswith("/v1/")
        self._num_running += counted
        try:
            if counted and not self._has_room():
                raise ServiceUnavailable(
                    f"{self._limits.max_requests} requests are under way already", "try again", retry_after_s=1.0
                )
            self._access.check(
                scope["path"], host=headers.get("host", ""), authorization=headers.get("authorization", "")
            )
            body = await self._read_body(headers, receive)
            await self._app(scope, _replay(body, receive), answer.send)
        except CallerGone:
            answer.status = answer.status or _GONE
        except LodestreamError as error:
            await self._refuse(scope, answer, error)
        except Exception:
            # The trace is ours alone: the caller gets the id to ask with.
            logger.exception("request %s failed", notes.request_id)
            detail = "the server failed to answer; its log names this request"
            problem = describe_problem(500, "Internal Error", detail, notes.request_id)
            await answer.fail(500, {"content-type": PROBLEM_JSON}, problem)
        finally:
            self._num_running -= counted
            self._metrics.observe(_name_route(scope), scope["method"], answer.status, notes)

    def _has_room(self) -> bool:
        return self._num_running <= self._limits.max_requests

    async def _read_body(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self._limits.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise _too_long(limit)
        if not declared and "transfer-encoding" not in headers:
            return b""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise CallerGone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_long(limit)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise DeadlineExceeded("the request's body did not arrive in time") from None

    async def _refuse(self, scope: Scope, answer: _Answer, error: LodestreamError) -> None:
        status, headers, body = describe_error(error, answer.notes.request_id)
        # What is left of the body stays unread, so the connection is of no further use.
        headers["connection"] = "close"
        challenge = [_BROWSER_CHALLENGE] if status == 401 and scope["path"] == "/" and self._access.needs_token else []
        await answer.fail(status, headers, body, extra=challenge)


class _Answer:
    """The way out: notes what was sent, and adds the headers."""

    def __init__(self, send: Send, notes: Notes) -> None:
        self._send = send
        self.notes = notes
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.notes.headers(), *_SECURITY_HEADERS]
        await self._send(message)

    async def fail(
        self, status: int, headers: dict[str, str], body: bytes, *, extra: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answers with an error, unless the answer has begun already."""
        if self.status:
            return
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        raw += [(b"content-length", str(len(body)).encode()), *extra]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that hands out a body that was read already, and then what comes after it."""
    replayed = False

    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _too_long(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is longer than {limit} bytes", "send less at once (serve.max_body_bytes)")


def _read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def _name_route(scope: Scope) -> str:
    """The route's template: few names, whatever is asked for."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"
