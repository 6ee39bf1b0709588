"""The simplest encoding: one worker thread around the featurizer, one request after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.prepared import spans_from_table
from lodestream.errors import Overloaded, ServiceUnavailable
from lodestream.pipeline.reuse import SegmentIndex, find_known
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import EncodedTexts
from lodestream.pipeline.serve.texts import prepare_texts, split_rows

_RETRY_AFTER_S: Final = 1.0


class ThreadEncoding:
    """Runs the featurizer on a thread of its own, so that the event loop never waits for it. Counts belong to the event
    loop's thread and the worker's; single numbers are read without a lock."""

    def __init__(self, featurizer: Featurizer, limits: Limits) -> None:
        self._featurizer = featurizer
        self._limits = limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lodestream-encode")
        self._waiting: set[Future[EncodedTexts]] = set()
        self._num_encoded_tokens = 0
        self._num_known_tokens = 0
        self._closed = False

    @property
    def featurizer(self) -> Featurizer:
        """For what needs no weights."""
        return self._featurizer

    def warm(self) -> None:
        """Loads the model and encodes once."""
        self._worker.submit(self._warm).result()

    def _warm(self) -> None:
        self._featurizer.check_model()
        self._featurizer.featurize("The first words.", text_format="text")

    async def encode(
        self, texts: Sequence[str], *, text_format: TextFormat, segments: SegmentIndex | None
    ) -> EncodedTexts:
        """See parts.Encoding."""
        if self._closed:
            raise ServiceUnavailable("the server is shutting down", retry_after_s=_RETRY_AFTER_S)
        if len(self._waiting) >= self._limits.max_queued:
            raise Overloaded(
                f"{len(self._waiting)} requests wait for the encoder already",
                "try again later (serve.max_queued)",
                retry_after_s=_RETRY_AFTER_S,
            )
        future = self._worker.submit(self._encode_now, texts, text_format, segments)
        self._waiting.add(future)
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._waiting.discard(future)

    def _encode_now(self, texts: Sequence[str], text_format: TextFormat, segments: SegmentIndex | None) -> EncodedTexts:
        prepared = prepare_texts(self._featurizer, texts, text_format, self._limits)
        known = find_known([segments], spans_from_table(prepared)) if segments is not None else {}
        batch = self._featurizer.encode(prepared, known, run_id="")
        self._num_encoded_tokens += batch.counts.tokens_encoded
        self._num_known_tokens += batch.counts.tokens_total - batch.counts.tokens_encoded
        return EncodedTexts(
            rows=split_rows(batch.features, len(texts)),
            num_tokens=prepared.column("num_tokens").to_pylist(),
            num_encoded_tokens=batch.counts.tokens_encoded,
        )

    def count(self) -> Mapping[str, int]:
        """See parts.Encoding."""
        return {
            "waiting": len(self._waiting),
            "encoded_tokens": self._num_encoded_tokens,
            "known_tokens": self._num_known_tokens,
        }

    def close(self) -> None:
        """Ends the thread; what waits is refused."""
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)
