"""The endpoint in one process: uvicorn on a socket of its own."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from lodestream.errors import ConfigError
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.serve.access import open_access
from lodestream.pipeline.serve.app import build_app
from lodestream.pipeline.serve.models import Readiness
from lodestream.pipeline.serve.opening import open_service

_BACKLOG: Final = 2048
_KEEP_ALIVE_S: Final = 30

Announce = Callable[[str, Readiness], None]


def run_server(loaded: LoadedConfig, announce: Announce) -> None:
    """Serves until SIGINT or SIGTERM, and then lets the requests that are under way end.

    Args:
        loaded: which store, where to listen, who may ask.
        announce: called with the address and how ready the server is: once it is known, and again once it is ready.

    Raises:
        ConfigError: the address cannot be listened on, or others could reach it and there is no token.
    """
    serve = loaded.config.serve
    access = open_access(loaded)
    listener = listen(serve.host, serve.port)
    url = name_url(serve.host, listener.getsockname()[1])
    app = build_app(open_service(loaded), loaded, access, announce=lambda readiness: announce(url, readiness))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # addresses hold ids: /metrics counts requests, and answers carry their own times
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(serve.drain_timeout),
    )
    with listener:
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if _is_version_6(host) else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            "give another port, or 0 for a free one: lodestream serve --port 0",
        ) from None


def _is_version_6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def name_url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens so."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if _is_version_6(host) else host)  # noqa: S104
    return f"http://{shown}:{port}"
