"""``lodestream serve --ray``: replicas under Ray Serve behind HAProxy, on this machine or on a cluster."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lodestream.errors import ConfigError, ExecutorError
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.process import has_haproxy, set_ray_serve_defaults
from lodestream.pipeline.serve.access import open_access
from lodestream.pipeline.serve.listeners import list_listeners
from lodestream.pipeline.serve.models import Readiness
from lodestream.pipeline.serve.server import Announce, listen, name_url

REPLICA_PORTS: Final = 64
"""Ports of which every replica takes one, on which HAProxy reaches it."""
_FIRST_PORT, _LAST_PORT = 20_000, 30_000  # below what Linux gives to outgoing connections

_PROXY_START_S: Final = 60.0
_LOOK_INTERVAL_S: Final = 1.0
_SEE_LOG: Final = "see the logs below /tmp/ray/session_latest/logs/serve, or serve without --ray"


def run_ray_server(loaded: LoadedConfig, *, replicas: int, announce: Announce) -> None:
    """Serves until SIGINT or SIGTERM, and then lets the requests that are under way end.

    Args:
        loaded: which store, where to listen, who may ask; and which Ray: that at ``run.ray_address``, else a new one.
        replicas: processes that answer.
        announce: called with the address and how ready the endpoint is, and again once it is ready if it was not then.

    Raises:
        ConfigError: the address cannot be listened on, or others could reach it and there is no token.
        ExecutorError: Ray cannot be reached or started, or the cluster's was not started with HAProxy.
    """
    access = open_access(loaded)
    address = loaded.config.run.ray_address
    if address and not access.needs_token:
        raise ConfigError(
            f"the Ray at {address} listens on other machines, and there is no token", "set serve.token_file"
        )
    host, port = loaded.config.serve.host, loaded.config.serve.port
    with listen(host, port) as listener:  # HAProxy would say nothing of a port that is taken
        port = listener.getsockname()[1]
    with open_ray(address) as replica_ports, _stop_on_signals() as stop:  # in this order: Ray sets handlers too
        from ray import serve
        from ray.exceptions import RayError

        from lodestream.pipeline.serve.ray_endpoint import APPLICATION, make_application

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        where = "EveryNode" if address else "HeadOnly"
        try:
            serve.start(proxy_location=where, http_options={"host": host, "port": port}, logging_config=_quiet())
            if not access.needs_token:
                check_listeners(port, replica_ports)
            local = loaded if address else _share_threads(loaded, replicas)
            application = make_application(local, replicas=replicas)
            serve.run(application, name=APPLICATION, route_prefix="/", logging_config=_quiet())
            if not access.needs_token:
                check_listeners(port, replica_ports)
            _answer_until(stop, name_url(host, port), announce)
            # The application goes before the proxy, through which its last answers have to pass.
            serve.delete(APPLICATION)
        except (RayError, RuntimeError) as error:  # Serve says the latter of an application that does not start
            first_line = str(error).partition("\n")[0]
            raise ExecutorError(f"Ray Serve failed: {first_line}", _SEE_LOG) from error
        finally:
            serve.shutdown()


def check_listeners(port: int, replica_ports: range) -> None:
    """Waits until ``port`` is listened on, and proves that it and the replicas' are reached from this machine only.

    Raises:
        ConfigError: they are reached from elsewhere, or nobody can tell.
        ExecutorError: nobody listens.
    """
    ends_at = time.monotonic() + _PROXY_START_S
    while True:
        try:
            listeners = list_listeners({port, *replica_ports})
        except OSError as error:
            raise _refuse(f"it cannot be told who listens on port {port} ({error})") from None
        for listener in listeners:
            if not listener.is_loopback:
                raise _refuse(f"port {listener.port} is listened on at {listener.address}")
        if any(listener.port == port for listener in listeners):
            return
        if time.monotonic() > ends_at:
            raise ExecutorError(
                f"Ray Serve's proxy does not listen on port {port} after {_PROXY_START_S:g} s",
                _SEE_LOG,
            )
        time.sleep(0.1)


def _refuse(what: str) -> ConfigError:
    return ConfigError(f"{what}, and there is no token", "set serve.token_file, or serve without --ray")


@contextmanager
def open_ray(address: str) -> Iterator[range]:
    """A Ray that serves with HAProxy, and the ports of its replicas. One that starts here ends with the context."""
    with tempfile.TemporaryDirectory(prefix="lodestream-") as folder:
        replica_ports = _find_ports()
        if not address:
            free = [_find_port(), _find_port()]
            set_ray_serve_defaults(Path(folder), metrics_port=free[0], stats_port=free[1], replica_ports=replica_ports)
        import ray

        from lodestream.pipeline.ray_session import start_ray

        start_ray(address, without="lodestream serve without --ray")
        try:
            if address and not ray.get(ray.remote(has_haproxy).remote()):
                raise ExecutorError(
                    f"the Ray at {address} was started without HAProxy",
                    "set RAY_SERVE_ENABLE_HA_PROXY=1 on every node before `ray start`",
                )
            yield replica_ports
        finally:
            ray.shutdown()


def _find_port() -> int:
    with listen("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
    return port


def _find_ports() -> range:
    """Ports in a row on which nobody listens, as far as can be told."""
    for start in range(_FIRST_PORT, _LAST_PORT, REPLICA_PORTS):
        ports = range(start, start + REPLICA_PORTS)
        try:
            if list_listeners(ports):
                continue
        except OSError:  # not Linux: Ray tries another port where one is taken
            pass
        return ports
    raise ConfigError(f"there are no {REPLICA_PORTS} free ports in a row", "end what listens there")


def _share_threads(loaded: LoadedConfig, replicas: int) -> LoadedConfig:
    """The cores of this machine are divided among the replicas, where the number of threads is not given."""
    from lodestream.pipeline.serve.ray_endpoint import share_threads

    encoder = loaded.config.encoder
    if encoder.num_threads:
        return loaded
    encoder = encoder.model_copy(update={"num_threads": share_threads(replicas)})
    return replace(loaded, config=loaded.config.model_copy(update={"encoder": encoder}))


def _answer_until(stop: threading.Event, url: str, announce: Announce) -> None:
    readiness = _ask_readiness(url)
    announce(url, readiness)
    while not stop.wait(_LOOK_INTERVAL_S):
        if not readiness.is_ready:
            readiness = _ask_readiness(url)
            if readiness.is_ready:
                announce(url, readiness)


def _ask_readiness(url: str) -> Readiness:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:  # noqa: S310  our own address
            return Readiness.model_validate_json(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Readiness.model_validate_json(error.read())


def _quiet() -> dict[str, Any]:
    """No access log: addresses hold ids."""
    return {"log_level": "WARNING", "enable_access_log": False}


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one does what it did before."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def receive(number: int, frame: Any) -> None:
        stop.set()
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, receive)
    try:
        yield stop
    finally:
        restore()
