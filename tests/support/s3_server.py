"""An object store that speaks S3, as a process of its own: ``python s3_server.py PORT``.

moto looks at a condition (If-Match, If-None-Match) and stores the object in two steps. A real store does both at once,
so the requests pass one by one here, each with its whole body at hand: one that is stopped halfway holds up nobody.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class _KeepAlive(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"


class OneByOne:
    """The application ``inner``, which handles one request at a time, from its complete body to its complete answer."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self._inner = inner
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = _read_body(environ)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        with self._lock:
            answer = self._inner(environ, start_response)
            try:
                return list(answer)
            finally:
                getattr(answer, "close", lambda: None)()


def _read_body(environ: dict[str, Any]) -> bytes:
    stream = environ["wsgi.input"]
    if environ.get("HTTP_TRANSFER_ENCODING") == "chunked":
        body: bytes = stream.read()
        return body
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = stream.read(length)
    if len(body) != length:
        raise ConnectionError("the client went away in the middle of its request")
    return body


def main() -> None:
    """Serves until it is terminated."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = OneByOne(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=_KeepAlive)


if __name__ == "__main__":
    main()
