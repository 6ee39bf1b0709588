"""Reaching a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from functools import partial

import ray

from lodestream.errors import ExecutorError


def start_ray(address: str, *, without: str) -> None:
    """Connects to the Ray at ``address``; an empty one starts a Ray here, which ends with ``ray.shutdown``.

    Args:
        address: as ``run.ray_address``.
        without: what to type to do without Ray, for the error's hint.

    Raises:
        ExecutorError: it cannot be reached or started.
    """
    start = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Ray forks only to start other programs, which Lance's warning is not about.
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            if address:
                start(address=address)
            else:
                num_cpus = max(4, os.cpu_count() or 1)
                start(address="local", num_cpus=num_cpus, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"reach Ray at {address}" if address else "start a local Ray"
        raise ExecutorError(f"cannot {where}: {error}", f"check run.ray_address, or use {without}") from None
