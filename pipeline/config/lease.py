"""Settings of the lease: where writers agree on which of them may write."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lodestream.errors import ConfigError
from lodestream.pipeline.config.types import Section
from lodestream.storage.registers.opening import name_kind


class LeaseConfig(Section):
    """Where writers agree on which of them may write.

    ``backend``  ``auto`` takes what ``url`` speaks of; without ``url`` the lease lies with the store
    ``url``      the server's address, with user and password where it wants them; as a variable,
                 ``LODESTREAM__LEASE__URL``, it keeps them out of the file
    ``ttl_s``    a writer that has not been heard of for so long is taken for dead
    """

    backend: Literal["auto", "local", "object", "etcd", "postgres", "redis"] = "auto"
    url: str = ""
    ttl_s: float = Field(default=15.0, ge=1)

    @model_validator(mode="after")
    def _check_url(self) -> LeaseConfig:
        if not self.url:
            if self.backend in ("etcd", "postgres", "redis"):
                raise ValueError(f"url is missing: the address of the server for backend {self.backend!r}")
            return self
        try:
            spoken_of = name_kind(self.url)
        except ConfigError as error:
            raise ValueError(f"url: {error.message}; {error.hint}") from None
        if self.backend not in ("auto", spoken_of):
            raise ValueError(f"url is one of backend {spoken_of!r}, not {self.backend!r}")
        return self
