"""The endpoint as a deployment of Ray Serve: the same application in every replica.

One deployment, with the encoder in the replica's own process: a call from one deployment to another costs four times as
much as the answer. ``build`` is what a Serve configuration names as ``import_path``, see deploy/ray_serve.yaml.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from lodestream.pipeline.config.settings import LoadedConfig, load_config
from lodestream.pipeline.serve.access import open_access
from lodestream.pipeline.serve.app import build_app
from lodestream.pipeline.serve.opening import open_service

APPLICATION: Final = "lodestream"
REPLICA_CPUS: Final = 0.5
"""Logical CPUs of a replica: small, so that a local Ray has room for several; the threads are what counts."""

_PROBES: Final = 64
"""Requests beyond serve.max_requests that Ray lets in: the application itself says 503 to them, and answers probes."""


class Endpoint:
    """One replica."""

    def __init__(self, loaded: LoadedConfig) -> None:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        self._loaded = loaded

    def __serve_build_asgi_app__(self) -> FastAPI:
        access = open_access(self._loaded)
        # Ray sends requests as soon as the start is over, so the start is over when the model is loaded.
        return build_app(open_service(self._loaded), self._loaded, access, ready_first=True)


class BuildArguments(BaseModel):
    """``args`` of the application in a Serve configuration.

    ``config``    the lodestream.toml, as every node of the cluster sees it
    ``set``       settings, each ``section.name=value``
    ``replicas``  processes that answer; leave it out where the configuration says num_replicas or autoscaling_config
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str
    set: list[str] = []
    replicas: int = Field(default=1, ge=1)


def build(arguments: BuildArguments) -> Application:
    """The application that a Serve configuration deploys.

    Raises:
        ConfigError: the configuration is wrong, or others could reach it and there is no token.
    """
    file = Path(arguments.config).expanduser()
    loaded = load_config(start=file.parent, file=file, overrides=arguments.set)
    open_access(loaded)  # what replicas would refuse is refused here
    return make_application(loaded, replicas=arguments.replicas)


def make_application(loaded: LoadedConfig, *, replicas: int) -> Application:
    """The deployment of ``replicas`` endpoints with this configuration."""
    settings = loaded.config.serve
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]  # its overloads name one of two
        serve.ingress()(Endpoint),
        name="Endpoint",
        num_replicas=replicas,
        max_ongoing_requests=settings.max_requests + _PROBES,
        max_queued_requests=_PROBES,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        health_check_period_s=5,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": REPLICA_CPUS},
    )
    application: Application = deployment.bind(loaded)
    return application


def share_threads(replicas: int) -> int:
    """Threads of the encoder of each replica on a machine that has all of them."""
    return max(1, (os.cpu_count() or 1) // replicas)
