"""Features of texts as they come: what the endpoint encodes on demand.

    texts -> prepare (thread) -> segments -> micro-batches of all requests (thread) -> rows of each text (thread)

The stages are those of a backfill, so that a text gets the codes here that it gets there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.micro_batcher import BatcherOptions, BatchRecord, MicroBatcher
from lodestream.actors.options import EncodeCounts
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.prepared import PreparedSpans, spans_from_table
from lodestream.errors import DocumentError, LodestreamError, RequestTooLarge, ServeError

SLICE_CHARS: Final = 1 << 16
"""Texts that are prepared in one go: a long request leaves the thread to a short one so often."""

_CHARS_PER_TOKEN: Final = 4
"""A guess, for the room that is kept while the tokens are not counted yet."""

_FIRST_TEXT: Final = "The first text is slow, and the next ones are not."


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderOptions:
    """``max_text_tokens``: of one text. ``num_threads``: of torch. ``batch_tokens``, ``max_queued_tokens``: of a batch,
    and of all that may wait."""

    max_text_tokens: int = 8192
    num_threads: int = 1
    batch_tokens: int = 1024
    max_queued_tokens: int = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """Feature rows of one text, of schema.features_schema(D), the document's own first; no rows where the text has no
    token. ``num_encoded_tokens`` went through the encoder; the rest was known."""

    rows: pa.Table
    num_tokens: int
    num_encoded_tokens: int


FindKnown = Callable[[Sequence[PreparedSpans]], Mapping[bytes, LeafVectors]]
"""Looks up leaf vectors by segment fingerprint. Runs in the thread that prepares."""


@dataclass(frozen=True, slots=True)
class _Segment:
    fingerprint: bytes
    spans: PreparedSpans
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """Texts that were prepared together: the spans of each, and what is known of them."""

    prepared: pa.Table
    spans: Sequence[PreparedSpans]
    known: Mapping[bytes, LeafVectors]


class TextEncoder:
    """Encodes the texts of many concurrent requests with one featurizer.

    Guarantees: a text's codes are those that ``Featurizer.featurize`` gives it; the event loop's own thread does
    nothing but bookkeeping; a request that fails or is cancelled does not disturb the others. Belongs to one event
    loop, but may be made, warmed up and closed in any thread.

    Args:
        featurizer: nobody else may encode with it at the same time.
        options: limits and sizes.
        on_batch: called in the event loop after each batch.

    Example:
        >>> encoder = TextEncoder(Featurizer(), TextEncoderOptions())
        >>> encoded = await encoder.encode(["How are relative imports resolved?"], text_format="text")
    """

    def __init__(
        self,
        featurizer: Featurizer,
        options: TextEncoderOptions,
        *,
        on_batch: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        self.featurizer = featurizer
        self._options = options
        sizes = BatcherOptions(batch_tokens=options.batch_tokens, max_queued_tokens=options.max_queued_tokens)
        self.batcher: MicroBatcher[_Segment, LeafVectors] = MicroBatcher(
            self._encode_segments, sizes, start_thread=self._set_threads, on_batch=on_batch
        )
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def warm_up(self) -> None:
        """Loads the model and encodes a first text, which also measures the rate. Waits; not for the event loop."""
        part = self._prepare([_FIRST_TEXT], "text", None)
        self.batcher.warm_up(*_list_segments([part]))

    async def encode(
        self, texts: Sequence[str], *, text_format: TextFormat, find_known: FindKnown | None = None
    ) -> list[EncodedText]:
        """Features of ``texts``, in their order. To cancel it takes what has not begun out of the queue.

        Args:
            texts: any number.
            text_format: of all of them.
            find_known: where segments are looked up first, so that they need no encoding.

        Raises:
            RequestTooLarge: a text is longer than ``max_text_tokens``, or the queue would never hold all of them.
            DocumentError: a text cannot be used.
            Overloaded: the queue is full.
            ServiceUnavailable: it was closed.
            ServeError: the encoder failed on a text.
        """
        loop = asyncio.get_running_loop()
        parts: list[_Slice] = []
        with self.batcher.reserve(min(_guess_tokens(texts), self._options.max_queued_tokens)):
            for some in _slice_texts(texts):
                part = await loop.run_in_executor(self._preparer, self._prepare, some, text_format, find_known)
                self._check_texts(part, sum(len(earlier.spans) for earlier in parts))
                parts.append(part)
        segments, tokens = _list_segments(parts)
        results = await self.batcher.submit(segments, tokens)
        encoded = dict(zip([segment.fingerprint for segment in segments], map(_take_leaves, results), strict=True))
        answers: list[EncodedText] = []
        for part in parts:
            answers += await loop.run_in_executor(self._preparer, self._finish, part, encoded)
        return answers

    async def embed(self, texts: Sequence[str], *, role: Literal["query", "document"]) -> NDArray[np.float32]:
        """float32 [N, D]: a unit vector for each text, of a query as ``Featurizer.embed`` gives it.

        Raises:
            DocumentError: a text has no token.
            RequestTooLarge, Overloaded, ServiceUnavailable, ServeError: as of ``encode``.
        """
        prompt = self.featurizer.model.query_prompt if role == "query" else ""
        prompted = [f"{prompt}{text}" if text.strip() else "" for text in texts]
        answers = await self.encode(prompted, text_format="text")
        for index, answer in enumerate(answers):
            if not answer.rows.num_rows:
                raise DocumentError(f"text {index} has no token to encode", "give texts with at least one word")
        codes_ND = np.array([answer.rows.column("codes")[0].values.to_numpy() for answer in answers], np.float32)
        return np.asarray(codes_ND / np.linalg.norm(codes_ND, axis=1, keepdims=True), np.float32)

    def close(self) -> None:
        """Takes in nothing more, and refuses what waits with ServiceUnavailable. May be called in any thread."""
        self.batcher.close()
        self._preparer.shutdown(wait=False)

    # ---- in the threads --------------------------------------------------------------------------------------------

    def _set_threads(self) -> None:
        import torch

        torch.set_num_threads(self._options.num_threads)

    def _prepare(self, texts: Sequence[str], text_format: TextFormat, find_known: FindKnown | None) -> _Slice:
        prepared = self.featurizer.prepare(_as_documents(texts, text_format))
        spans = list(spans_from_table(prepared))
        return _Slice(prepared=prepared, spans=spans, known={} if find_known is None else find_known(spans))

    def _check_texts(self, part: _Slice, first_index: int) -> None:
        limit = self._options.max_text_tokens
        reasons = part.prepared.column("quarantine_reason").to_pylist()
        for index, (spans, reason) in enumerate(zip(part.spans, reasons, strict=True), start=first_index):
            if reason:
                raise DocumentError(f"text {index}: {reason}")
            if len(spans.token_ids) > limit:
                raise RequestTooLarge(
                    f"text {index} has {len(spans.token_ids)} tokens, {limit} are allowed", "send it in parts"
                )

    def _encode_segments(self, segments: Sequence[_Segment]) -> list[LeafVectors]:
        wanted = {segment.fingerprint: (segment.spans, segment.row) for segment in segments}
        leaves = self.featurizer.encode_leaves(wanted, EncodeCounts())
        return [leaves[segment.fingerprint] for segment in segments]

    def _finish(self, part: _Slice, encoded: Mapping[bytes, LeafVectors]) -> list[EncodedText]:
        batch = self.featurizer.encode(part.prepared, {**encoded, **part.known}, run_id="")
        return [
            EncodedText(
                rows=rows,
                num_tokens=len(spans.token_ids),
                num_encoded_tokens=sum(
                    tokens for fingerprint, tokens in _count_own_tokens(spans) if fingerprint not in part.known
                ),
            )
            for spans, rows in zip(part.spans, _split_rows(batch.features, batch.documents), strict=True)
        ]


def _guess_tokens(texts: Sequence[str]) -> int:
    return sum(len(text) // _CHARS_PER_TOKEN + 1 for text in texts)


def _slice_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Runs of texts of about SLICE_CHARS characters."""
    part: list[str] = []
    num_chars = 0
    for text in texts:
        if part and num_chars + len(text) > SLICE_CHARS:
            yield part
            part, num_chars = [], 0
        part.append(text)
        num_chars += len(text) + 1
    if part:
        yield part


def _as_documents(texts: Sequence[str], text_format: TextFormat) -> pa.Table:
    hashes = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    return pa.table(
        {
            "doc_id": ["text"] * len(texts),
            "source": [""] * len(texts),
            "uri": [""] * len(texts),
            "content_hash": pa.array(hashes, pa.binary(32)),
            "source_version": [""] * len(texts),
            "text": pa.array(texts, pa.large_string()),
            "text_format": [text_format] * len(texts),
        }
    )


def _list_segments(parts: Sequence[_Slice]) -> tuple[list[_Segment], list[int]]:
    """Every unknown segment of the texts once, and the tokens that the encoder reads for each."""
    wanted: dict[bytes, tuple[_Segment, int]] = {}
    for part in parts:
        for spans in part.spans:
            prefixes = np.diff(spans.segment_prefix_offsets).tolist()
            for row, (fingerprint, tokens) in enumerate(_count_own_tokens(spans)):
                if fingerprint not in part.known and fingerprint not in wanted:
                    wanted[fingerprint] = (_Segment(fingerprint, spans, row), tokens + prefixes[row])
    return [segment for segment, _ in wanted.values()], [tokens for _, tokens in wanted.values()]


def _count_own_tokens(spans: PreparedSpans) -> list[tuple[bytes, int]]:
    """Each segment's fingerprint, and its tokens without heading prefix and special ones."""
    own = np.diff(spans.segment_tokens, axis=1)[:, 0].tolist()
    return list(zip(spans.fingerprints(), own, strict=True))


def _take_leaves(result: LeafVectors | Exception) -> LeafVectors:
    if isinstance(result, LodestreamError):
        raise result
    if isinstance(result, Exception):
        raise ServeError("a text could not be encoded", "see the log of the endpoint") from result
    return result


def _split_rows(features: pa.Table, documents: pa.Table) -> Iterator[pa.Table]:
    """The rows of each document, which stand together in the order of the documents."""
    counts = [documents.column(f"num_{level}").to_numpy() for level in ("topics", "paragraphs", "sentences")]
    own = (documents.column("num_segments").to_numpy() > 0).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(own + sum(counts))])
    for start, end in pairwise(ends.tolist()):
        yield features.slice(start, end - start)
