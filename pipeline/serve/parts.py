"""The parts that a service is put together from, each behind a small protocol.

Every part is told of a new snapshot (``prepare``) before the first request is pinned to it, and of an old one
(``release``) after the last request has left it. Both run on the thread that follows the pointer, one at a time, while
requests go on; requests call the other methods from many threads. A part that raises in ``prepare`` keeps the service
on the snapshot that it has, degraded with the error as the reason. A request may name an older snapshot by its number:
of that no part is told beforehand, and it is read straight from the store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.texts import Role
from lodestream.pipeline.reuse import SegmentIndex
from lodestream.pipeline.search import Hit
from lodestream.schema import Granularity
from lodestream.storage.store import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """What a snapshot has of one document.

    ``batches``: its feature rows of the granularities asked for, of ``schema`` (schema.features_schema(D)), sentences
    first. A table of each of many documents would take longer than their answer.
    ``quarantine_reason``: None where its last version was used.
    ``tier``: where it was found ("memory", "disk", "snapshot"), for the counts.
    ``is_lossy``: whether the vectors went through a codec of the cache that loses (``cache.codec``).
    """

    doc_id: str
    source: str
    source_version: str
    quarantine_reason: str | None
    batches: Sequence[pa.RecordBatch]
    schema: pa.Schema
    tier: str = "snapshot"
    is_lossy: bool = False

    @property
    def rows(self) -> pa.Table:
        """The batches as one table."""
        return pa.Table.from_batches(self.batches, schema=self.schema)

    @property
    def num_rows(self) -> int:
        """Of all batches."""
        return sum(batch.num_rows for batch in self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTexts:
    """Features of texts, in their order.

    ``rows``: for each text its feature rows, of schema.features_schema(D); none where the text has no token.
    ``num_tokens``: for each text, without special tokens.
    ``num_encoded_tokens``: how many of all went through the encoder; the others were known.
    """

    rows: Sequence[pa.Table]
    num_tokens: Sequence[int]
    num_encoded_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """Hits of a search, best first; ``is_exact``: whether no nearer span can have been missed."""

    hits: list[Hit]
    is_exact: bool


class RowSource(Protocol):
    """Feature rows by document. Never encodes."""

    def prepare(self, snapshot: Snapshot, *, before: Snapshot | None) -> None:
        """A snapshot is about to be served; ``before`` is the one served until now."""

    def release(self, snapshot: Snapshot) -> None:
        """No request reads this snapshot any more."""

    def get(
        self, snapshot: Snapshot, doc_ids: Sequence[str], granularities: Collection[Granularity]
    ) -> Mapping[str, StoredDocument]:
        """The documents that the snapshot has, by id; others are left out. Runs on a worker thread."""

    def get_held(
        self, snapshot: Snapshot, doc_ids: Sequence[str], granularities: Collection[Granularity]
    ) -> Mapping[str, StoredDocument] | None:
        """As ``get``, in the event loop: None unless all of them are there and no file has to be waited for."""

    def count(self) -> Mapping[str, int]:
        """Documents found so far by tier, the nearest first ("memory", "disk", "snapshot"), and those that none had
        ("miss")."""


class Searcher(Protocol):
    """Nearest spans of a snapshot."""

    def prepare(self, snapshot: Snapshot, *, before: Snapshot | None) -> None:
        """A snapshot is about to be served; ``before`` is the one served until now."""

    def release(self, snapshot: Snapshot) -> None:
        """No request reads this snapshot any more."""

    def search(
        self,
        snapshot: Snapshot,
        query_D: NDArray[np.float32],
        *,
        limit: int,
        granularity: Granularity,
        min_density: float | None,
        headings: bool,
        doc_prefix: str | None,
        exact: bool,
    ) -> Nearest:
        """The ``limit`` nearest spans, best first. Runs on a worker thread.

        Args:
            query_D: float32 unit vector.
            limit, granularity, min_density, headings, doc_prefix: as of pipeline.search.search_snapshot.
            exact: whether the search must not be approximate.
        """

    def count(self) -> Mapping[str, int]:
        """Searches so far by how they were done (index, approximate, scan), "rows" and "bytes" of the index, and
        "text_bytes" of the spans' texts that are held."""

    def describe_recall(self) -> Mapping[str, Mapping[str, Any]]:
        """Of each granularity that may be searched approximately: "rows", "cells", whether searches are "approximate"
        now, the "reason" if not, and, once measured, "recall" and what it was measured with."""

    def close(self) -> None:
        """Ends its threads."""


class Encoding(Protocol):
    """One featurizer, run off the event loop. It belongs to one feature version."""

    @property
    def featurizer(self) -> Featurizer:
        """For what needs no weights: cutting, tokens, density. Its ``prepare`` may run in several threads."""

    def warm(self) -> None:
        """Loads the model and encodes once, so that the first request waits for nothing.

        Raises:
            ModelError: the model cannot be used.
        """

    async def encode(
        self,
        texts: Sequence[str],
        *,
        text_format: TextFormat,
        segments: SegmentIndex | None,
        role: Role = "document",
    ) -> EncodedTexts:
        """Features of texts, by the stages of a backfill. What nobody waits for any more and has not begun is dropped.

        Args:
            texts: any number.
            text_format: of all of them.
            segments: where known segments are looked up first, so that they need no encoding; None looks nowhere.
            role: whose prompt the model gets before the texts.

        Raises:
            RequestTooLarge: a text, or all together, have more tokens than the limits allow.
            Overloaded: the queue is full.
            DocumentError: a text cannot be used.
        """

    def count(self) -> Mapping[str, int]:
        """Numbers for /metrics and the page: "waiting" requests now; "encoded_tokens", "known_tokens" so far; and
        of the batches "queued_tokens" now, "batches", "batch_segments", "batch_tokens", "wait_ms", "run_ms" so far."""

    def close(self) -> None:
        """Ends its threads; what waits is refused with ServiceUnavailable."""
