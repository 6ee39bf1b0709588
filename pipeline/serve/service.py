"""What the endpoint does, apart from HTTP: each request is answered from one pinned snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from lodestream.actors.options import FeaturizerOptions
from lodestream.errors import DeadlineExceeded, RequestInvalid, StoreError
from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.follower import Follower, SnapshotNumber, View
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.models import (
    DensityRequest,
    EmbeddingsRequest,
    EncodeRequest,
    FeaturesRequest,
    FeatureStatus,
    SearchRequest,
)
from lodestream.pipeline.serve.notes import Notes
from lodestream.pipeline.serve.parts import EncodedTexts, Encoding, Nearest, RowSource, Searcher, StoredDocument
from lodestream.pipeline.serve.regions import ScoredText, read_prepared, read_stored
from lodestream.pipeline.serve.texts import embed_texts, prepare_texts
from lodestream.pipeline.session import options_of_recipe
from lodestream.pipeline.states import find_rows
from lodestream.schema import Granularity, features_schema
from lodestream.storage.location import Location
from lodestream.storage.snapshot import SnapshotRecord
from lodestream.storage.store import Snapshot

T = TypeVar("T")

_READ_THREADS: Final = 4
_ROWS_AT_ONCE: Final = 256  # a millisecond or so of rendering: less than the way to another thread and back under load
_PARAGRAPHS: Final[tuple[Granularity, ...]] = ("paragraph",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRead:
    """One id of a request, and what the snapshot has of it."""

    doc_id: str
    status: FeatureStatus
    stored: StoredDocument | None


class Service:
    """The endpoint's core. ``start`` and ``close`` belong to one thread, the requests to one event loop.

    Guarantees: an answer is made of exactly one snapshot, which comes with it; what is stored is answered without the
    encoder.
    """

    def __init__(
        self,
        location: Location,
        *,
        rows: RowSource,
        searcher: Searcher,
        make_encoding: Callable[[FeaturizerOptions], Encoding],
        limits: Limits,
        poll_interval_s: float,
        cache: CacheKeeper | None = None,
    ) -> None:
        self.location = location
        self.rows = rows
        self.searcher = searcher
        self.cache = cache
        self.limits = limits
        self.is_stopping = False
        self._make_encoding = make_encoding
        self._readers = ThreadPoolExecutor(max_workers=_READ_THREADS, thread_name_prefix="lodestream-read")
        self.follower = Follower(location, self, interval_s=poll_interval_s)

    # ---- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens what is published and warms the model; from then on follows the pointer."""
        self.follower.start()

    def close(self) -> None:
        """Lets the snapshot and the encoding go, after the reads that are under way."""
        self.is_stopping = True
        self._readers.shutdown(wait=True, cancel_futures=True)
        self.follower.stop()
        self.searcher.close()
        if self.cache is not None:
            self.cache.close()

    @property
    def encoding(self) -> Encoding | None:
        """That of the latest snapshot."""
        view = self.follower.latest
        return view.encoding if view is not None else None

    # ---- views (see follower.ViewKeeper) ---------------------------------------------------------------------------

    def open_latest(self, snapshot: Snapshot, record: SnapshotRecord, *, before: View | None) -> View:
        """Readies every part for what is to become the latest snapshot."""
        kept = before.encoding if before is not None and before.record.recipe == record.recipe else None
        encoding = kept or self._make_encoding(options_of_recipe(record.recipe, model=record.model))
        try:
            if kept is None:
                encoding.warm()
            previous = before.snapshot if before is not None else None
            self.rows.prepare(snapshot, before=previous)
            self.searcher.prepare(snapshot, before=previous)
        except BaseException:
            if kept is None:
                encoding.close()
            raise
        return View(snapshot=snapshot, record=record, encoding=encoding)

    def open_older(self, snapshot: Snapshot, record: SnapshotRecord) -> View:
        """A view of a snapshot that a request names by its number."""
        latest = self.follower.latest
        same = latest is not None and latest.record.recipe == record.recipe
        return View(snapshot=snapshot, record=record, encoding=self.encoding if same else None)

    def close_view(self, view: View) -> None:
        """The last request has left ``view``."""
        self.rows.release(view.snapshot)
        self.searcher.release(view.snapshot)
        if view.encoding is not None and not self.follower.count_users(view.encoding):
            view.encoding.close()

    # ---- requests --------------------------------------------------------------------------------------------------

    async def get_features(self, request: FeaturesRequest, notes: Notes) -> tuple[View, list[DocumentRead]]:
        """What a snapshot has of documents, in the order of the ids."""
        self.limits.check_ids(request.ids)
        found = self._find_held(request, notes)
        if found is None:
            found = await self._read(
                request.snapshot, notes, lambda view: self._read_documents(view, request.ids, request.granularities)
            )
        view, reads = found
        notes.tiers.update(read.stored.tier for read in reads if read.stored is not None)
        return view, reads

    def _find_held(self, request: FeaturesRequest, notes: Notes) -> tuple[View, list[DocumentRead]] | None:
        """What memory has, without another thread: the way there and back takes longer than the answer."""
        if not self.follower.has_open(request.snapshot):
            return None
        with notes.clock("read"), self.follower.pin(request.snapshot) as view:
            held = self.rows.get_held(view.snapshot, request.ids, request.granularities)
            if held is None:
                return None
            self._note(view, notes)
            return view, [_describe_read(doc_id, held[doc_id]) for doc_id in request.ids]

    async def encode(self, request: EncodeRequest, notes: Notes) -> tuple[View, EncodedTexts]:
        """Features of texts; segments that the store has are not encoded."""
        self.limits.check_texts(request.texts)
        with self._pin_latest(notes) as view, notes.clock("encode"):
            encoding = _require_encoding(view)
            return view, await self._in_time(
                encoding.encode(request.texts, text_format=request.text_format, segments=view.snapshot)
            )

    async def embed(self, request: EmbeddingsRequest, notes: Notes) -> tuple[View, NDArray[np.float32], EncodedTexts]:
        """A unit vector for each text: float32 [N, D]."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        self.limits.check_texts(texts)
        with self._pin_latest(notes) as view, notes.clock("encode"):
            if request.dimensions not in (None, view.snapshot.dim):
                raise RequestInvalid(f"the model's vectors have {view.snapshot.dim} dimensions, and no others")
            segments = view.snapshot if request.input_type == "document" else None
            vectors, encoded = await self._in_time(
                embed_texts(_require_encoding(view), texts, role=request.input_type, segments=segments)
            )
            return view, vectors, encoded

    async def search(self, request: SearchRequest, notes: Notes) -> tuple[View, Nearest]:
        """The spans nearest to a text or a vector."""
        if request.query is None:
            return await self._read(request.snapshot, notes, lambda view: self._search(view, request), span="search")
        with self._pin_latest(notes) as latest:
            encoding = _require_encoding(latest)
            with notes.clock("encode"):
                vectors, _ = await self._in_time(embed_texts(encoding, [request.query], role="query"))
            # By its number, so that a publish meanwhile does not part the query's model from the snapshot's.
            number = latest.record.sequence if request.snapshot == "latest" else request.snapshot
            return await self._read(
                number, notes, lambda view: self._search(view, request, encoding, vectors[0]), span="search"
            )

    async def score(self, request: DensityRequest, notes: Notes) -> tuple[View, float, list[ScoredText]]:
        """Paragraphs of texts or stored documents with their density, and the threshold of dense ones."""
        self.limits.check_ids(request.ids or ())
        view, scored = await self._read(request.snapshot, notes, lambda view: self._score(view, request))
        return view, float(view.record.recipe["base_below"]), scored

    async def compute(self, num_rows: int, function: Callable[[], T]) -> T:
        """What ``function`` returns; with many rows to go through it runs beside the event loop."""
        if num_rows <= _ROWS_AT_ONCE:
            return function()
        return await self._in_time(asyncio.wrap_future(self._readers.submit(function)))

    # ---- on the readers' threads -----------------------------------------------------------------------------------

    def _read_documents(
        self, view: View, doc_ids: Sequence[str], granularities: Collection[Granularity]
    ) -> list[DocumentRead]:
        stored = self.rows.get(view.snapshot, doc_ids, granularities)
        missing = [doc_id for doc_id in doc_ids if doc_id not in stored]
        pending = self._find_pending(view, missing) if missing else frozenset()
        return [_describe_read(doc_id, stored.get(doc_id), is_pending=doc_id in pending) for doc_id in doc_ids]

    def _find_pending(self, view: View, doc_ids: Sequence[str]) -> frozenset[str]:
        """Documents that an unfinished run has written and not published."""
        pointer = self.follower.pointer
        staged = pointer.staged if pointer is not None else None
        if staged is None or pointer is None or pointer.sequence != view.record.sequence:
            return frozenset()
        record = replace(view.record, tables=staged.tables, published_at=None)
        try:
            snapshot = Snapshot(self.location, record)
            rows = find_rows(snapshot, "documents", doc_ids, ["doc_id"])
        except StoreError:  # the run has ended, or began anew, since the pointer was read
            return frozenset()
        return frozenset(rows.column("doc_id").to_pylist())

    def _search(
        self,
        view: View,
        request: SearchRequest,
        encoding: Encoding | None = None,
        query_D: NDArray[np.float32] | None = None,
    ) -> Nearest:
        if query_D is None:
            query_D = _take_vector(request.vector or (), view.snapshot.dim)
        elif view.encoding is not encoding:
            raise RequestInvalid(
                f"snapshot {view.record.sequence} has features of another model than the one that is loaded",
                "give a vector of that model instead of a query",
            )
        return self.searcher.search(
            view.snapshot,
            query_D,
            limit=request.limit,
            granularity=request.granularity,
            min_density=request.min_density,
            headings=request.headings,
            doc_prefix=_find_prefix(view, request.source) if request.source is not None else None,
            exact=request.exact,
        )

    def _score(self, view: View, request: DensityRequest) -> list[ScoredText]:
        if request.texts is not None:
            featurizer = _require_encoding(view).featurizer
            return read_prepared(prepare_texts(featurizer, request.texts, request.text_format, self.limits))
        empty = features_schema(view.snapshot.dim).empty_table()
        return [
            read_stored(read.stored.rows if read.stored else empty, doc_id=read.doc_id, status=read.status)
            for read in self._read_documents(view, request.ids or (), _PARAGRAPHS)
        ]

    # ---- pinning and waiting ---------------------------------------------------------------------------------------

    @contextmanager
    def _pin_latest(self, notes: Notes) -> Iterator[View]:
        with self.follower.pin() as view:
            self._note(view, notes)
            yield view

    def _note(self, view: View, notes: Notes) -> None:
        notes.snapshot, notes.freshness_s = view.record.sequence, self.follower.freshness_s(view)

    async def _read(
        self, number: SnapshotNumber, notes: Notes, read: Callable[[View], T], *, span: str = "read"
    ) -> tuple[View, T]:
        """Runs ``read`` on a reader's thread with the snapshot pinned until it ends, also if nobody waits any more."""
        with notes.clock(span):
            view, result = await self._in_time(asyncio.wrap_future(self._submit(number, read)))
        self._note(view, notes)
        return view, result

    def _submit(self, number: SnapshotNumber, read: Callable[[View], T]) -> Future[tuple[View, T]]:
        if not self.follower.has_open(number):
            return self._readers.submit(self._read_older, number, read)
        view = self.follower.enter(number)
        try:
            future = self._readers.submit(lambda: (view, read(view)))
        except RuntimeError:  # the readers have been shut down
            self.follower.leave(view)
            raise
        future.add_done_callback(lambda _: self.follower.leave(view))
        return future

    def _read_older(self, number: SnapshotNumber, read: Callable[[View], T]) -> tuple[View, T]:
        with self.follower.pin(number) as view:
            return view, read(view)

    async def _in_time(self, awaitable: Awaitable[T]) -> T:
        limit_s = self.limits.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await awaitable
        except TimeoutError:
            raise DeadlineExceeded(
                f"there was no answer within {limit_s:g}s",
                "ask for less, or set serve.request_timeout",
                retry_after_s=1,
            ) from None


def _describe_read(doc_id: str, stored: StoredDocument | None, *, is_pending: bool = False) -> DocumentRead:
    status: FeatureStatus = "PENDING" if is_pending else "NOT_FOUND"
    if stored is not None:
        status = "FOUND" if stored.quarantine_reason is None else "QUARANTINED"
    return DocumentRead(doc_id=doc_id, status=status, stored=stored)


def _require_encoding(view: View) -> Encoding:
    if view.encoding is None:
        raise RequestInvalid(f"snapshot {view.record.sequence} has features of a model that is not loaded")
    return view.encoding


def _take_vector(values: Sequence[float], dim: int) -> NDArray[np.float32]:
    if len(values) != dim:
        raise RequestInvalid(f"the vector has {len(values)} values, those of the store have {dim}")
    vector = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise RequestInvalid("the vector has no direction: its length is 0, or more than can be computed with")
    return np.asarray(vector / length, np.float32)


def _find_prefix(view: View, source: str) -> str | None:
    """What the ids of a source's documents begin with; None where it is the only source, whose ids have no prefix."""
    names = sorted(view.record.checkpoint)
    if source not in names:
        raise RequestInvalid(f"there is no source {source!r}; the snapshot has {', '.join(names) or 'none'}")
    return f"{source}/" if len(names) > 1 else None
