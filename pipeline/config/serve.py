"""Settings of the endpoint: where it listens, who may ask, and how much."""

from __future__ import annotations

from pydantic import Field, model_validator

from lodestream.pipeline.config.types import Budget, Duration, Section, Size, Text
from lodestream.pipeline.sizes import MIB


class ServeConfig(Section):
    """Where the endpoint listens, who may ask, and how much.

    ``host, port``         127.0.0.1 is reached from this machine only; port 0 takes a free one
    ``token, token_file``  what callers send as ``Authorization: Bearer``; better in a file, or as the variable
                           ``LODESTREAM__SERVE__TOKEN``, than here
    ``allow_anonymous``    whether a host that others can reach may be served without a token
    ``poll_interval``      how often the store is asked for a new snapshot
    ``request_timeout``    after which a request is answered with 504
    ``drain_timeout``      how long requests that are under way may take when the server is told to stop
    ``max_requests``       requests under way at once; more are answered with 503
    ``batch_tokens``       tokens of all requests that are encoded together
    ``max_queued_tokens``  tokens that wait for the encoder; a request beyond that is answered with 429
    ``max_body_bytes``     length of a request
    ``max_ids, max_texts``  ids, and texts, of one request
    ``max_text_tokens, max_tokens``  tokens of one text, and of all texts of one request
    ``index_bytes``        memory for the codes that are searched, about 400 bytes a row; a larger store is scanned
    ``text_bytes``         memory for the texts of spans that searches found lately; 0 reads them from the store
    ``approximate_above``  rows of a granularity above which searches look into cells of near rows only; 0 = never
    ``min_recall``         share of the ten nearest that they must find, as measured; where they do not, search is exact
    """

    host: Text = "127.0.0.1"
    port: int = Field(default=8750, ge=0, le=65535)
    token: str = ""
    token_file: str = ""
    allow_anonymous: bool = False
    poll_interval: Duration = 0.5
    request_timeout: Duration = 30.0
    drain_timeout: Duration = 30.0
    max_requests: int = Field(default=256, ge=1)
    batch_tokens: int = Field(default=1024, ge=1)
    max_queued_tokens: int = Field(default=131_072, ge=1)
    max_body_bytes: Size = 4 * MIB
    max_ids: int = Field(default=1000, ge=1)
    max_texts: int = Field(default=256, ge=1)
    max_text_tokens: int = Field(default=8192, ge=1)
    max_tokens: int = Field(default=65_536, ge=1)
    index_bytes: Size = 2048 * MIB
    text_bytes: Budget = 64 * MIB
    approximate_above: int = Field(default=400_000, ge=0)
    min_recall: float = Field(default=0.95, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        if self.token and self.token_file:
            raise ValueError("give either token or token_file")
        for name in ("poll_interval", "request_timeout"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be more than 0s")
        return self
