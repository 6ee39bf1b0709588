"""From a configuration to the service that it asks for."""

from __future__ import annotations

import os

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.serve.batched_encoding import BatchedEncoding
from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.cached_encoding import CachedEncoding
from lodestream.pipeline.serve.cached_rows import CachedRows
from lodestream.pipeline.serve.index_searcher import IndexSearcher
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import Encoding
from lodestream.pipeline.serve.service import Service


def open_service(loaded: LoadedConfig) -> Service:
    """The service over the configured store, not started yet."""
    limits, serve = read_limits(loaded), loaded.config.serve
    num_threads = loaded.config.encoder.num_threads or os.cpu_count() or 1

    cache = CacheKeeper(loaded.config.cache.options(loaded.resolve))
    rows = CachedRows(cache)

    def make_encoding(options: FeaturizerOptions) -> Encoding:
        batched = BatchedEncoding(Featurizer(options), limits, num_threads=num_threads)
        return CachedEncoding(batched, cache, limits)

    searcher = IndexSearcher(
        rows.find_catalog,
        max_bytes=serve.index_bytes,
        text_bytes=serve.text_bytes,
        approximate_above=serve.approximate_above,
        min_recall=serve.min_recall,
    )
    cache.on_purge = searcher.forget_texts
    return Service(
        loaded.store_location,
        rows=rows,
        searcher=searcher,
        make_encoding=make_encoding,
        limits=limits,
        cache=cache,
        poll_interval_s=serve.poll_interval,
    )


def read_limits(loaded: LoadedConfig) -> Limits:
    """The limits that are configured."""
    serve = loaded.config.serve
    return Limits(
        request_timeout_s=serve.request_timeout,
        max_requests=serve.max_requests,
        batch_tokens=serve.batch_tokens,
        max_queued_tokens=serve.max_queued_tokens,
        max_body_bytes=serve.max_body_bytes,
        max_ids=serve.max_ids,
        max_texts=serve.max_texts,
        max_text_tokens=serve.max_text_tokens,
        max_tokens=serve.max_tokens,
    )
