"""How a call is sent: addresses, tokens, what is tried again and for how long, and which error an answer becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx
import tenacity
from pydantic import ValidationError

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
from lodestream.pipeline.client.calls import Call, Received
from lodestream.pipeline.serve.models import JSON, PROBLEM_JSON, Problem

A = TypeVar("A")

DEFAULT_URL: Final = "http://127.0.0.1:8750"

RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
RETRIED_FAILURES: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)
"""The connection failed. Every call only reads, so that one that may have been answered can be sent again; one whose
time is over is not, for the server may still be at work on it."""

_ERRORS: Final[Mapping[int, type[ServeError]]] = {
    401: AccessDenied,
    413: RequestTooLarge,
    422: RequestInvalid,
    429: Overloaded,
    502: ServiceUnavailable,
    503: ServiceUnavailable,
    504: DeadlineExceeded,
}
_FIRST_WAIT_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How calls are sent.

    ``url``              where the endpoint is
    ``token``            sent as bearer token; empty sends none
    ``timeout_s``        for one attempt: to connect, to send, and between two pieces of the answer
    ``max_attempts``     attempts in all
    ``max_retry_after_s``  the longest wait that the server may ask for; where it asks for more, the error comes at once
    """

    url: str
    token: str
    timeout_s: float
    max_attempts: int
    max_retry_after_s: float

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.url!r} is not the address of an endpoint", "such as http://127.0.0.1:8750")
        if self.max_attempts < 1 or not self.timeout_s > 0:
            raise ConfigError("max_attempts and timeout_s must be more than 0")

    def client_options(self) -> dict[str, Any]:
        """What httpx's clients are made with. Proxies of the environment are not asked: an endpoint is one's own."""
        headers = {"User-Agent": "lodestream", "Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": httpx.Timeout(self.timeout_s),
            "trust_env": False,
        }

    def retry_options(self) -> dict[str, Any]:
        """What tenacity's loops are made with; they end with the last answer or failure, whatever it is."""
        return {
            "stop": tenacity.stop_after_attempt(self.max_attempts),
            "retry": tenacity.retry_if_exception_type(RETRIED_FAILURES) | tenacity.retry_if_result(self._is_worth_it),
            "wait": _wait,
            "retry_error_callback": _give_last,
        }

    def _is_worth_it(self, response: httpx.Response) -> bool:
        passes = response.status_code in RETRIED_STATUSES or _is_of_proxy(response)
        return passes and _retry_after_s(response) <= self.max_retry_after_s

    def describe_failure(self, error: httpx.HTTPError) -> ServeError:
        """The error of a call that got no answer."""
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return DeadlineExceeded(
                f"{self.url} did not answer within {self.timeout_s:g} s", "ask for less at once, or give timeout_s"
            )
        reason = str(error) or type(error).__name__
        return ServiceUnavailable(f"cannot reach {self.url}: {reason}", "is `lodestream serve` running there?")


def build_request(call: Call[A]) -> dict[str, Any]:
    """What httpx's ``request`` is called with."""
    headers = {"Accept": call.accept}
    if call.content:
        headers["Content-Type"] = JSON
    return {"method": call.method, "url": call.path, "content": call.content or None, "headers": headers}


def read_answer(call: Call[A], response: httpx.Response) -> A:
    """What the call asked for.

    Raises:
        ServeError, NotFoundError: what the answer says went wrong.
    """
    received = Received(
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        content=response.content,
    )
    if received.status < 300 or received.status in call.also:
        try:
            return call.read(received)
        except (ValueError, KeyError) as error:  # pydantic's and Arrow's errors are ValueErrors
            raise ServeError(
                f"{call.method} {call.path}: the answer is not that of a lodestream endpoint ({type(error).__name__})",
                "check the address, and that client and server are of the same version",
            ) from error
    raise _describe_problem(response)


def _describe_problem(response: httpx.Response) -> LodestreamError:
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
        message, hint = problem.detail, problem.hint or ""
    except ValidationError:  # from something between client and server
        message, hint = f"the answer was {status} {response.reason_phrase}".rstrip(), ""
    if status == 404:
        return NotFoundError(message, hint)
    return _ERRORS.get(status, ServeError)(message, hint, retry_after_s=_retry_after_s(response))


def _is_of_proxy(response: httpx.Response) -> bool:
    """Whether a 500 is none of the endpoint's: the HAProxy of Ray Serve says 500 where a replica died or there is none.
    The endpoint's own one would come again."""
    return response.status_code == 500 and response.headers.get("content-type") != PROBLEM_JSON


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not, or by a date."""
    try:
        seconds = float(response.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


_backoff: Final[Callable[[tenacity.RetryCallState], float]] = tenacity.wait_random_exponential(
    multiplier=_FIRST_WAIT_S, max=_LONGEST_BACKOFF_S
)


def _wait(state: tenacity.RetryCallState) -> float:
    outcome = state.outcome
    asked_s = 0.0 if outcome is None or outcome.failed else _retry_after_s(outcome.result())
    # On top of what the server asks for, so that those whom it sent away together do not come back together.
    return asked_s + _backoff(state)


def _give_last(state: tenacity.RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()
