"""The encoding of the endpoint: requests share micro-batches, and the queue before the encoder is bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.micro_batcher import BatchRecord
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.prepared import PreparedSpans
from lodestream.actors.text_encoder import TextEncoder, TextEncoderOptions
from lodestream.actors.texts import Role
from lodestream.pipeline.reuse import SegmentIndex, find_known
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import EncodedTexts


class BatchedEncoding:
    """See parts.Encoding. ``warm`` and ``close`` may be called in any thread, ``encode`` in one event loop.

    Args:
        featurizer: of one feature version; nobody else encodes with it.
        limits: what a request may bring, and what may wait.
        num_threads: of torch.
    """

    def __init__(self, featurizer: Featurizer, limits: Limits, *, num_threads: int) -> None:
        options = TextEncoderOptions(
            num_threads=num_threads, batch_tokens=limits.batch_tokens, max_queued_tokens=limits.max_queued_tokens
        )
        self._encoder = TextEncoder(featurizer, options, check_tokens=limits.check_tokens, on_batch=self._note)
        self._num_encoded_tokens = 0
        self._num_known_tokens = 0
        self._num_batches = 0
        self._num_segments = 0
        self._batch_tokens = 0
        self._wait_s = 0.0
        self._run_s = 0.0

    @property
    def featurizer(self) -> Featurizer:
        """For what needs no weights."""
        return self._encoder.featurizer

    def warm(self) -> None:
        """Loads the model, looks at its hash, and encodes once."""
        self.featurizer.check_model()
        self._encoder.warm_up()

    async def encode(
        self,
        texts: Sequence[str],
        *,
        text_format: TextFormat,
        segments: SegmentIndex | None,
        role: Role = "document",
    ) -> EncodedTexts:
        """See parts.Encoding."""

        def look_up(spans: Sequence[PreparedSpans]) -> Mapping[bytes, LeafVectors]:
            return find_known([segments], spans) if segments is not None else {}

        encoded = await self._encoder.encode(texts, text_format=text_format, role=role, find_known=look_up)
        num_tokens = [text.num_tokens for text in encoded]
        num_encoded = sum(text.num_encoded_tokens for text in encoded)
        self._num_encoded_tokens += num_encoded
        self._num_known_tokens += sum(num_tokens) - num_encoded
        return EncodedTexts(rows=[text.rows for text in encoded], num_tokens=num_tokens, num_encoded_tokens=num_encoded)

    def _note(self, batch: BatchRecord) -> None:
        self._num_batches += 1
        self._num_segments += len(batch.waits_s)
        self._batch_tokens += batch.tokens
        self._wait_s += sum(batch.waits_s)
        self._run_s += batch.ran_s

    def count(self) -> Mapping[str, int]:
        """See parts.Encoding. Waiting is counted for each segment."""
        return {
            "batches": self._num_batches,
            "batch_segments": self._num_segments,
            "batch_tokens": self._batch_tokens,
            "wait_ms": round(self._wait_s * 1000),
            "run_ms": round(self._run_s * 1000),
            "waiting": self._encoder.batcher.num_requests,
            "queued_tokens": self._encoder.batcher.queued_tokens,
            "encoded_tokens": self._num_encoded_tokens,
            "known_tokens": self._num_known_tokens,
        }

    def close(self) -> None:
        """Ends the threads; what waits is refused."""
        self._encoder.close()
