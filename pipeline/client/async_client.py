"""``lodestream.AsyncClient``: the endpoint's calls as coroutines. See client.py for the other one."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import tenacity
from numpy.typing import NDArray

from lodestream.pipeline.client import calls
from lodestream.pipeline.client.calls import Call, Granularities, Role, SnapshotNumber
from lodestream.pipeline.client.sending import DEFAULT_URL, Sending, build_request, read_answer
from lodestream.pipeline.serve.models import (
    DensityAnswer,
    DocumentFeatures,
    EncodeAnswer,
    FeaturesAnswer,
    Readiness,
    SearchAnswer,
    SnapshotsAnswer,
    TextFormat,
    VectorEncoding,
)
from lodestream.schema import Granularity

A = TypeVar("A")


class AsyncClient:
    """As ``Client``, for asyncio. Many calls may be under way at once, in one event loop.

    What passes by itself (a connection that fails, 429, 502, 503, 504) is tried again, after the time that the server
    asks for; all calls only read. What does not raises one of lodestream.errors: RequestInvalid, RequestTooLarge,
    AccessDenied, NotFoundError, Overloaded, ServiceUnavailable, DeadlineExceeded, or ServeError for all else.

    Args:
        url: where the endpoint is.
        token: its bearer token, if it asks for one.
        timeout_s: for one attempt: to connect, to send, and between two pieces of the answer.
        max_attempts: attempts of each call; 1 tries nothing again.
        max_retry_after_s: where the server asks for a longer wait, the error comes at once.

    Example:
        >>> async with lodestream.AsyncClient("http://127.0.0.1:8750") as client:
        ...     hits = (await client.search("how are relative imports resolved?")).hits
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str = "",
        timeout_s: float = 35.0,
        max_attempts: int = 4,
        max_retry_after_s: float = 10.0,
    ) -> None:
        self._sending = Sending(
            url=url,
            token=token,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            max_retry_after_s=max_retry_after_s,
        )
        self._http = httpx.AsyncClient(**self._sending.client_options())
        self._retrying = tenacity.AsyncRetrying(**self._sending.retry_options())

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def get(
        self,
        ids: Sequence[str],
        *,
        granularities: Granularities = None,
        snapshot: SnapshotNumber = "latest",
        encoding: VectorEncoding = "base64",
    ) -> FeaturesAnswer:
        """Features of documents, one result an id in its order, with a status each; all of one snapshot.

        Args:
            ids: documents, as search names them.
            granularities: of which levels; None = of all.
            snapshot: "latest", or a number that ``snapshots`` lists.
            encoding: how the vectors travel; ``decode_vector`` reads all of them.
        """
        call = calls.call_features(ids, granularities=granularities, snapshot=snapshot, encoding=encoding)
        return await self._send(call)

    async def get_document(self, doc_id: str) -> DocumentFeatures:
        """Features of one document of the latest snapshot.

        Raises:
            NotFoundError: there is none of that id.
        """
        return await self._send(calls.call_document(doc_id))

    async def encode(
        self,
        texts: Sequence[str],
        *,
        text_format: TextFormat = "text",
        granularities: Granularities = None,
        encoding: VectorEncoding = "base64",
    ) -> EncodeAnswer:
        """Features of texts that need not be in the store, as a run would compute them."""
        call = calls.call_encode(texts, text_format=text_format, granularities=granularities, encoding=encoding)
        return await self._send(call)

    async def as_table(
        self,
        *,
        ids: Sequence[str] = (),
        texts: Sequence[str] = (),
        text_format: TextFormat = "text",
        granularities: Granularities = None,
        snapshot: SnapshotNumber = "latest",
    ) -> pa.Table:
        """Feature rows as an Arrow table, for bulk: codes and scales as they are stored, nothing turned into text.

        Args:
            ids: documents, any number: they are asked for in several requests, all of the first one's snapshot.
                Those that there are not have no rows.
            texts: in the place of ids.
            text_format: of the texts.
            granularities: of which levels; None = of all.
            snapshot: of the documents.

        Raises:
            RequestInvalid: both ids and texts are given, or neither.
        """
        calls.check_one_of(ids, texts)
        if texts:
            call = calls.call_encode_table(texts, text_format=text_format, granularities=granularities)
            return (await self._send(call))[0]
        tables = []
        for some in calls.cut_ids(ids):
            call = calls.call_features_table(some, granularities=granularities, snapshot=snapshot)
            table, number = await self._send(call)
            snapshot = number
            tables.append(table)
        return pa.concat_tables(tables)

    async def embed(self, texts: Sequence[str], *, role: Role = "document") -> NDArray[np.float32]:
        """float32 [N, D]: a unit vector for each text; a query gets the prompt that the model wants."""
        return await self._send(calls.call_embed(texts, role=role))

    async def search(
        self,
        query: str | NDArray[np.float32],
        *,
        limit: int = 10,
        granularity: Granularity = "paragraph",
        min_density: float | None = None,
        source: str | None = None,
        headings: bool = False,
        snapshot: SnapshotNumber = "latest",
        exact: bool = False,
    ) -> SearchAnswer:
        """The spans nearest to a text or a vector, best first.

        Args:
            query: a text, or a vector of any length but 0.
            limit: number of hits.
            granularity: of which level.
            min_density: leave out spans of lower density.
            source: of this source only.
            headings: include paragraphs that are nothing but a heading.
            snapshot: "latest" or a number.
            exact: whether every row must be looked at, also where the server searches approximately.
        """
        call = calls.call_search(
            query,
            limit=limit,
            granularity=granularity,
            min_density=min_density,
            source=source,
            headings=headings,
            snapshot=snapshot,
            exact=exact,
        )
        return await self._send(call)

    async def density(
        self, texts: Sequence[str] | None = None, *, ids: Sequence[str] | None = None, text_format: TextFormat = "text"
    ) -> DensityAnswer:
        """Density of the paragraphs of texts, or of stored documents."""
        return await self._send(calls.call_density(texts, ids=ids, text_format=text_format))

    async def snapshots(self) -> SnapshotsAnswer:
        """The snapshots that can be asked for, newest first."""
        return await self._send(calls.call_snapshots())

    async def status(self) -> dict[str, Any]:
        """What ``lodestream status --json`` prints."""
        return await self._send(calls.call_status())

    async def readiness(self) -> Readiness:
        """Whether the endpoint answers yet, and why not. Waits for no start-up."""
        return await self._send(calls.call_ready())

    async def _send(self, call: Call[A]) -> A:
        try:
            response: httpx.Response = await self._retrying.copy()(self._http.request, **build_request(call))
        except httpx.HTTPError as error:
            raise self._sending.describe_failure(error) from error
        return read_answer(call, response)
