"""The routes that answer with data. Each takes a model, asks the service and renders what comes back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import PurePath
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from lodestream.errors import NotFoundError
from lodestream.pipeline.serve.follower import View
from lodestream.pipeline.serve.gate import CallerGone
from lodestream.pipeline.serve.models import (
    ARROW_STREAM,
    JSON,
    MAX_ID_CHARS,
    PROBLEM_JSON,
    DensityAnswer,
    DensityRequest,
    DocumentFeatures,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EncodeAnswer,
    EncodeRequest,
    FeaturesAnswer,
    FeaturesRequest,
    Problem,
    SearchAnswer,
    SearchRequest,
    SnapshotChoice,
    VectorEncoding,
)
from lodestream.pipeline.serve.notes import NOTES, Notes
from lodestream.pipeline.serve.regions import describe_density
from lodestream.pipeline.serve.rendering import (
    encode_vector,
    keep_granularities,
    render_documents,
    render_text,
    tabulate_documents,
    tabulate_texts,
    to_arrow_stream,
    to_json,
)
from lodestream.pipeline.serve.service import Service
from lodestream.schema import GRANULARITIES, Granularity, features_schema

T = TypeVar("T")

_ARROW: Final[dict[str, Any]] = {ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}}}
_PROBLEM: Final[dict[str, Any]] = {"content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "model": Problem} | _PROBLEM
    for status, text in {
        401: "A valid token is needed.",
        404: "There is no such thing.",
        413: "Beyond the limits.",
        422: "The request makes no sense.",
        429: "The encoder's queue is full.",
        503: "Nothing to serve, or too much to do.",
        504: "No answer in time.",
    }.items()
}
MODEL_ALIAS: Final = "lodestream"


class _JsonRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


class JsonRoute(APIRoute):
    """A route whose body is read by orjson: a lone surrogate or NaN is an error, and long lists cost little."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


def make_data_router(service: Service) -> APIRouter:
    """The routes over ``service``."""
    router = APIRouter(prefix="/v1", route_class=JsonRoute, responses=REFUSALS)
    _add_feature_routes(router, service)
    _add_text_routes(router, service)
    _add_search_routes(router, service)
    return router


def _add_feature_routes(router: APIRouter, service: Service) -> None:
    @router.post("/features:get", response_model=FeaturesAnswer, responses={200: {"content": _ARROW}})
    async def get_features(body: FeaturesRequest, request: Request) -> Response:
        """Feature rows of documents by id, all of one snapshot. An id that is not there is no error."""
        notes = take_notes(request)
        view, reads = await service.get_features(body, notes)
        num_rows = sum(read.stored.num_rows for read in reads if read.stored is not None)

        def render_arrow() -> bytes:
            schema = features_schema(view.snapshot.dim)
            return to_arrow_stream(tabulate_documents(reads, body.encoding, schema=schema), _name(view))

        def render_json() -> bytes:
            return to_json(_name(view) | {"results": render_documents(reads, body.encoding)})

        with notes.clock("render"):
            if wants_arrow(request):
                return _answer_arrow(await service.compute(num_rows, render_arrow))
            return _answer_json(await service.compute(num_rows, render_json))

    @router.get(
        "/features/{id:path}",
        response_model=DocumentFeatures,
        responses={304: {"description": "It is as you have it."}},
    )
    async def get_document(
        request: Request,
        id: Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)],  # noqa: A002
        granularity: Annotated[list[Granularity], Query(min_length=1)] = list(GRANULARITIES),  # noqa: B006
        snapshot: Annotated[SnapshotChoice, Query()] = "latest",
        encoding: Annotated[VectorEncoding, Query()] = "float",
    ) -> Response:
        """Feature rows of one document. Its ETag changes with the document alone, whatever else is published."""
        notes = take_notes(request)
        body = FeaturesRequest(ids=[id], granularities=granularity, snapshot=snapshot, encoding=encoding)
        view, (read,) = await service.get_features(body, notes)
        if read.status == "NOT_FOUND":
            raise NotFoundError(
                f"there is no document of this id in snapshot {view.record.sequence}",
                "ids are paths below the source's folder, as search names them",
            )
        with notes.clock("render"):
            content = to_json(render_documents([read], encoding)[0])
        etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
        headers = {"etag": etag, "cache-control": "private, no-cache"}
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=JSON, headers=headers)


def _add_text_routes(router: APIRouter, service: Service) -> None:
    @router.post("/encode", response_model=EncodeAnswer, responses={200: {"content": _ARROW}})
    async def encode(body: EncodeRequest, request: Request) -> Response:
        """Features of new texts, by the stages of a backfill. What the store knows already is not encoded."""
        notes = take_notes(request)
        view, encoded = await _unless_gone(request, service.encode(body, notes))
        num_rows = sum(rows.num_rows for rows in encoded.rows)

        def render_arrow() -> bytes:
            return to_arrow_stream(tabulate_texts(encoded, body.encoding, body.granularities), _name(view))

        def render_json() -> bytes:
            results = [
                render_text(index, num_tokens, keep_granularities(rows, body.granularities), body.encoding)
                for index, (rows, num_tokens) in enumerate(zip(encoded.rows, encoded.num_tokens, strict=True))
            ]
            counts = {"num_tokens": sum(encoded.num_tokens), "num_encoded_tokens": encoded.num_encoded_tokens}
            return to_json(_name(view) | {"results": results} | counts)

        with notes.clock("render"):
            if wants_arrow(request):
                return _answer_arrow(await service.compute(num_rows, render_arrow))
            return _answer_json(await service.compute(num_rows, render_json))

    @router.post("/embeddings", response_model=EmbeddingsAnswer)
    async def create_embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        """One unit vector for each text, in OpenAI's shape."""
        notes = take_notes(request)
        _require_model(service, body.model)
        _, vectors, encoded = await _unless_gone(request, service.embed(body, notes))
        as_text = body.encoding_format == "base64"
        num_tokens = sum(encoded.num_tokens)

        def render_json() -> bytes:
            data = [
                {"object": "embedding", "index": index, "embedding": encode_vector(vector) if as_text else vector}
                for index, vector in enumerate(vectors)
            ]
            usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
            return to_json({"object": "list", "data": data, "model": body.model, "usage": usage})

        with notes.clock("render"):
            return _answer_json(await service.compute(len(vectors), render_json))


def _add_search_routes(router: APIRouter, service: Service) -> None:
    @router.post("/search", response_model=SearchAnswer)
    async def search(body: SearchRequest, request: Request) -> Response:
        """The spans nearest to a text or a vector by cosine, best first."""
        notes = take_notes(request)
        view, nearest = await _unless_gone(request, service.search(body, notes))
        values = {"exact": nearest.is_exact, "hits": [hit.as_dict() for hit in nearest.hits]}
        return _answer_json(to_json(_name(view) | values))

    @router.post("/density", response_model=DensityAnswer)
    async def score_density(body: DensityRequest, request: Request) -> Response:
        """How dense the paragraphs of texts or of stored documents are, and the regions that they make."""
        view, threshold, scored = await service.score(body, take_notes(request))

        def render_json() -> bytes:
            results = [describe_density(index, one, threshold).model_dump() for index, one in enumerate(scored)]
            return to_json({"snapshot": view.record.sequence, "threshold": threshold, "results": results})

        return _answer_json(await service.compute(sum(len(one.paragraphs) for one in scored), render_json))


def take_notes(request: Request) -> Notes:
    """The notes that the gate made for this request."""
    notes = request.scope[NOTES]
    assert isinstance(notes, Notes)
    return notes


def wants_arrow(request: Request) -> bool:
    """Whether the caller prefers an Arrow stream."""
    return ARROW_STREAM in request.headers.get("accept", "").lower()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; it is cancelled when the caller leaves."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerGone
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_model(service: Service, name: str) -> None:
    view = service.follower.latest
    if view is None:
        return  # the service says why
    model = str(view.record.recipe["model"])
    names = [MODEL_ALIAS, *dict.fromkeys((model, PurePath(model).name))]
    if name not in names:
        raise NotFoundError(f"there is no model {name[:200]!r} here", f"ask for one of: {', '.join(names)}")


def _matches(header: str, etag: str) -> bool:
    candidates = [part.strip().removeprefix("W/") for part in header.split(",")]
    return etag in candidates or "*" in candidates


def _name(view: View) -> dict[str, Any]:
    return {"snapshot": view.record.sequence, "feature_version": view.record.feature_version}


def _answer_json(content: bytes) -> Response:
    return Response(content, media_type=JSON)


def _answer_arrow(content: bytes) -> Response:
    return Response(content, media_type=ARROW_STREAM)
