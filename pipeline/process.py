"""Settings that a process must have before torch or Ray are imported, set here and nowhere else; and the memory that it
holds without using it."""

from __future__ import annotations

import ctypes
import os
import secrets
from pathlib import Path
from typing import Final

ARENAS_VARIABLE: Final = "MALLOC_ARENA_MAX"
NUM_ARENAS: Final = max(2, os.cpu_count() or 1)
"""Heaps of glibc, one a core. Its own limit is eight a core: the threads of Lance, Arrow and the tokenizer use many,
and each keeps holes of its own (docs/throughput.md)."""

_M_ARENA_MAX: Final = -8  # of malloc.h

PROCESS_DEFAULTS: Final = {
    # For the processes that this one starts; this one has read it already.
    ARENAS_VARIABLE: str(NUM_ARENAS),
    # Idle OpenMP threads that spin take the other process's core: three times slower under contention, measured.
    "OMP_WAIT_POLICY": "passive",
    # Under `uv run` Ray would build the environment again in every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's core warns on the terminal of every pool of actors that Ray Data makes.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "TOKENIZERS_PARALLELISM": "true",
}


HAPROXY_VARIABLE: Final = "RAY_SERVE_ENABLE_HA_PROXY"
RAY_SERVE_DEFAULTS: Final = {
    # Ray's own proxy takes four times as long for a request (docs/serving_ray.md).
    HAPROXY_VARIABLE: "1",
    # Requests run in the replica's own event loop, without a thread and a buffer between.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # How long a replica that is told to go waits for the proxies to notice. One machine has one proxy.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Ray's five seconds are too few for a machine that is busy: the proxy is killed while it starts, and again.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}


def set_process_defaults() -> None:
    """Sets what the user has not set."""
    if ARENAS_VARIABLE not in os.environ:
        _limit_arenas(NUM_ARENAS)
    for name, value in PROCESS_DEFAULTS.items():
        os.environ.setdefault(name, value)


def _limit_arenas(number: int) -> None:
    """Keeps this process to so many heaps; a C library without them (musl, macOS) is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, number)


def return_free_memory() -> None:
    """Gives the machine back what the heaps of the C library and of Arrow keep free.

    The C library by itself returns only what lies free at the end of a heap. The holes that a chunk of work leaves are
    of other sizes than the next one needs, so that a long run would hold more with every chunk (docs/throughput.md).

    Cost: some milliseconds; pages that are used again are asked for again.
    """
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def set_ray_serve_defaults(folder: Path, *, metrics_port: int, stats_port: int, replica_ports: range) -> None:
    """Sets what a Ray on this machine that serves must find when it starts, where the user has not set it.

    Args:
        folder: where HAProxy keeps its socket, which whoever can open it controls: nobody else's.
        metrics_port, stats_port: of HAProxy; its own defaults would meet those of another one.
        replica_ports: of which every replica takes one.
    """
    variables = RAY_SERVE_DEFAULTS | {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_ports.stop - 1),
        # Ray's own ports are open to the network, and what reaches them runs code: nobody without this token does.
        "RAY_AUTH_MODE": "token",
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def has_haproxy() -> bool:
    """Whether the Ray that this process belongs to was started with HAProxy before its replicas."""
    return os.environ.get(HAPROXY_VARIABLE) == "1"
