"""Features of texts as they come: what the endpoint encodes on demand.

    texts -> prepare (thread) -> segments -> micro-batches of all requests (thread) -> rows of each text (thread)

The stages are those of a backfill, so that a text gets the codes here that it gets there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.micro_batcher import BatcherOptions, BatchRecord, MicroBatcher
from lodestream.actors.options import EncodeCounts
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.prepared import PreparedSpans, spans_from_table
from lodestream.actors.texts import Role, make_documents
from lodestream.actors.tokenize import group_texts
from lodestream.errors import DocumentError, LodestreamError, ServeError

SLICE_CHARS: Final = 1 << 16
"""Texts that are prepared in one go: a long request leaves the thread to a short one so often."""

_CHARS_PER_TOKEN: Final = 4
"""A guess, for the room that is kept while the tokens are not counted yet."""

_FIRST_TEXT: Final = "The first text is slow, and the next ones are not. "
_FEW_TOKENS: Final = 48
"""So few are encoded sooner by one thread than by two that wait for each other at every operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderOptions(BatcherOptions):
    """Those of the batcher, and ``num_threads``: of torch."""

    num_threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """Feature rows of one text, of schema.features_schema(D), the document's own first; no rows where the text has no
    token. The doc_id is the text's index. ``num_encoded_tokens`` went through the encoder; the rest was known."""

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
    num_tokens: int


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
        options: sizes.
        check_tokens: called with the tokens of each text of a request so far; raises where they are too many.
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
        check_tokens: Callable[[Sequence[int]], None] | None = None,
        on_batch: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        self.featurizer = featurizer
        self._options = options
        self._check_tokens = check_tokens
        self.batcher: MicroBatcher[_Segment, LeafVectors] = MicroBatcher(
            self._encode_segments,
            options,
            start_thread=partial(_start_thread, options.num_threads),
            on_batch=on_batch,
        )
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._single = ThreadPoolExecutor(1, thread_name_prefix="encode-few", initializer=partial(_start_thread, 1))

    def warm_up(self) -> None:
        """Loads the model and encodes a short and a long text, by which the rate is measured. Waits; not for the event
        loop."""
        for text in (_FIRST_TEXT, _FIRST_TEXT * 5):
            part = self._prepare([text], "text", "document", 0, None)
            self.batcher.warm_up(*_list_segments([part]))

    async def encode(
        self,
        texts: Sequence[str],
        *,
        text_format: TextFormat,
        role: Role = "document",
        find_known: FindKnown | None = None,
    ) -> list[EncodedText]:
        """Features of ``texts``, in their order. To cancel it takes what has not begun out of the queue.

        Args:
            texts: any number.
            text_format: of all of them.
            role: of all of them, see ``Featurizer.prepare``.
            find_known: where segments are looked up first, so that they need no encoding.

        Raises:
            RequestTooLarge: the queue would not hold all of them even if it were empty.
            DocumentError: a text cannot be used.
            Overloaded: the queue is full.
            ServiceUnavailable: it was closed.
            ServeError: the encoder failed on a text.
        """
        loop = asyncio.get_running_loop()
        parts: list[_Slice] = []
        num_tokens: list[int] = []
        with self.batcher.reserve(min(_guess_tokens(texts), self._options.max_queued_tokens)):
            for some in group_texts(texts, SLICE_CHARS):
                first = len(num_tokens)
                part = await loop.run_in_executor(
                    self._preparer, self._prepare, some, text_format, role, first, find_known
                )
                num_tokens += [len(spans.token_ids) for spans in part.spans]
                if self._check_tokens is not None:
                    self._check_tokens(num_tokens)
                parts.append(part)
        segments, tokens = _list_segments(parts)
        results = await self.batcher.submit(segments, tokens)
        encoded = dict(zip([segment.fingerprint for segment in segments], map(_take_leaves, results), strict=True))
        answers: list[EncodedText] = []
        for part in parts:
            answers += await loop.run_in_executor(self._preparer, self._finish, part, encoded)
        return answers

    def close(self) -> None:
        """Takes in nothing more, and refuses what waits with ServiceUnavailable. May be called in any thread."""
        self.batcher.close()
        self._preparer.shutdown(wait=False)
        self._single.shutdown(wait=False)

    # ---- in the threads --------------------------------------------------------------------------------------------

    def _prepare(
        self, texts: Sequence[str], text_format: TextFormat, role: Role, first: int, find_known: FindKnown | None
    ) -> _Slice:
        doc_ids = [str(index) for index in range(first, first + len(texts))]
        prepared = self.featurizer.prepare(make_documents(texts, text_format, doc_ids=doc_ids), role=role)
        for doc_id, reason in zip(doc_ids, prepared.column("quarantine_reason").to_pylist(), strict=True):
            if reason:
                raise DocumentError(f"text {doc_id} cannot be used: {reason}")
        spans = list(spans_from_table(prepared))
        return _Slice(prepared=prepared, spans=spans, known={} if find_known is None else find_known(spans))

    def _encode_segments(self, segments: Sequence[_Segment]) -> list[LeafVectors]:
        wanted = {segment.fingerprint: (segment.spans, segment.row) for segment in segments}
        if sum(segment.num_tokens for segment in segments) <= _FEW_TOKENS:
            leaves = self._single.submit(self.featurizer.encode_leaves, wanted, EncodeCounts()).result()
        else:
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


def _start_thread(num_threads: int) -> None:
    """Runs first in a thread that encodes."""
    from lodestream.kernels.threads import use_threads

    use_threads(num_threads)


def _guess_tokens(texts: Sequence[str]) -> int:
    return sum(len(text) // _CHARS_PER_TOKEN + 1 for text in texts)


def _list_segments(parts: Sequence[_Slice]) -> tuple[list[_Segment], list[int]]:
    """Every unknown segment of the texts once, and the tokens that the encoder reads for each."""
    wanted: dict[bytes, _Segment] = {}
    for part in parts:
        for spans in part.spans:
            prefixes = np.diff(spans.segment_prefix_offsets).tolist()
            for row, (fingerprint, tokens) in enumerate(_count_own_tokens(spans)):
                if fingerprint not in part.known and fingerprint not in wanted:
                    num_tokens = len(spans.prompt_ids) + prefixes[row] + tokens
                    wanted[fingerprint] = _Segment(fingerprint, spans, row, num_tokens)
    return list(wanted.values()), [segment.num_tokens for segment in wanted.values()]


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
