"""The calls of the HTTP interface, apart from how they are sent: what goes out, and what is made of the answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from lodestream.errors import RequestInvalid
from lodestream.pipeline.serve.models import (
    ARROW_STREAM,
    JSON,
    DensityAnswer,
    DensityRequest,
    DocumentFeatures,
    EmbeddingsRequest,
    EncodeAnswer,
    EncodeRequest,
    Feature,
    FeaturesAnswer,
    FeaturesRequest,
    Readiness,
    Request,
    SearchAnswer,
    SearchRequest,
    SnapshotsAnswer,
    TextFormat,
    VectorEncoding,
)
from lodestream.schema import Granularity

A = TypeVar("A")
R = TypeVar("R", bound=Request)
M = TypeVar("M", bound=BaseModel)

SNAPSHOT_HEADER: Final = "x-snapshot"

_TABLE_IDS: Final = 500

Granularities = Sequence[Granularity] | None
SnapshotNumber = int | Literal["latest"]
Role = Literal["document", "query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An answer as it came: lower-case header names."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[A]):
    """One call. ``read`` makes the answer of what came back with a status below 300, or one of ``also``."""

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[Received], A]
    content: bytes = b""
    accept: str = JSON
    also: frozenset[int] = frozenset()


def call_features(
    ids: Sequence[str], *, granularities: Granularities, snapshot: SnapshotNumber, encoding: VectorEncoding
) -> Call[FeaturesAnswer]:
    """Features of documents."""
    request = _make(
        FeaturesRequest, ids=list(ids), granularities=_list(granularities), snapshot=snapshot, encoding=encoding
    )
    return _post("/v1/features:get", request, _reader(FeaturesAnswer))


def call_features_table(
    ids: Sequence[str], *, granularities: Granularities, snapshot: SnapshotNumber
) -> Call[tuple[pa.Table, int]]:
    """Feature rows of documents as they are stored, and the snapshot's number."""
    request = _make(FeaturesRequest, ids=list(ids), granularities=_list(granularities), snapshot=snapshot)
    return _post("/v1/features:get", request, _read_table, accept=ARROW_STREAM)


def call_document(doc_id: str) -> Call[DocumentFeatures]:
    """Features of one document, of the latest snapshot."""
    return Call(method="GET", path=f"/v1/features/{quote(doc_id, safe='/')}", read=_reader(DocumentFeatures))


def call_encode(
    texts: Sequence[str], *, text_format: TextFormat, granularities: Granularities, encoding: VectorEncoding
) -> Call[EncodeAnswer]:
    """Features of texts."""
    request = _make(
        EncodeRequest,
        texts=list(texts),
        text_format=text_format,
        granularities=_list(granularities),
        encoding=encoding,
    )
    return _post("/v1/encode", request, _reader(EncodeAnswer))


def call_encode_table(
    texts: Sequence[str], *, text_format: TextFormat, granularities: Granularities
) -> Call[tuple[pa.Table, int]]:
    """Feature rows of texts, and the number of the snapshot whose model made them."""
    request = _make(EncodeRequest, texts=list(texts), text_format=text_format, granularities=_list(granularities))
    return _post("/v1/encode", request, _read_table, accept=ARROW_STREAM)


def call_embed(texts: Sequence[str], *, role: Role) -> Call[NDArray[np.float32]]:
    """float32 [N, D]: one unit vector a text."""
    request = _make(EmbeddingsRequest, input=list(texts), model="lodestream", encoding_format="base64", input_type=role)
    return _post("/v1/embeddings", request, _read_embeddings)


def call_search(query: str | NDArray[np.float32], **values: Any) -> Call[SearchAnswer]:
    """The nearest spans; ``values`` are those of SearchRequest."""
    asked: dict[str, Any] = {"query": query} if isinstance(query, str) else {"vector": query.tolist()}
    return _post("/v1/search", _make(SearchRequest, **asked, **values), _reader(SearchAnswer))


def call_density(
    texts: Sequence[str] | None, *, ids: Sequence[str] | None, text_format: TextFormat
) -> Call[DensityAnswer]:
    """Densities of texts or of stored documents."""
    request = _make(DensityRequest, texts=_list(texts), ids=_list(ids), text_format=text_format)
    return _post("/v1/density", request, _reader(DensityAnswer))


def call_snapshots() -> Call[SnapshotsAnswer]:
    """The snapshots that can be asked for."""
    return Call(method="GET", path="/v1/snapshots", read=_reader(SnapshotsAnswer))


def call_status() -> Call[dict[str, Any]]:
    """What ``lodestream status --json`` prints."""
    return Call(method="GET", path="/v1/status", read=_read_object)


def call_ready() -> Call[Readiness]:
    """Whether the endpoint answers; an endpoint that does not yet is an answer here, not an error."""
    return Call(method="GET", path="/readyz", read=_reader(Readiness), also=frozenset({503}))


def check_one_of(ids: Sequence[str], texts: Sequence[str]) -> None:
    """Raises RequestInvalid unless one of both is given."""
    if bool(ids) == bool(texts):
        raise RequestInvalid("give either ids or texts")


def cut_ids(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of ids for one request of a table each."""
    for start in range(0, len(ids), _TABLE_IDS):
        yield ids[start : start + _TABLE_IDS]


def decode_vector(feature: Feature) -> NDArray[np.float32]:
    """float32 [D]: a feature's vector, in whichever encoding it came.

    Raises:
        RequestInvalid: the feature came without a vector.
    """
    if feature.codes is not None and feature.scale is not None:
        codes = np.frombuffer(base64.b64decode(feature.codes), np.int8)
        return np.asarray(codes.astype(np.float32) * np.float32(feature.scale))
    if feature.vector is None:
        raise RequestInvalid("the feature came without a vector")
    if isinstance(feature.vector, str):
        return np.frombuffer(base64.b64decode(feature.vector), "<f4").astype(np.float32)
    return np.asarray(feature.vector, np.float32)


def _make(kind: type[R], **values: Any) -> R:
    """A request of these values; those that are None take the default.

    Raises:
        RequestInvalid: the server would not take it.
    """
    try:
        return kind.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestInvalid(f"{place}: {first['msg']}" if place else str(first["msg"])) from None


def _list(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)


def _post(path: str, request: Request, read: Callable[[Received], A], *, accept: str = JSON) -> Call[A]:
    content = request.model_dump_json(exclude_unset=True).encode()
    return Call(method="POST", path=path, read=read, content=content, accept=accept)


def _reader(kind: type[M]) -> Callable[[Received], M]:
    return lambda received: kind.model_validate_json(received.content)


def _read_table(received: Received) -> tuple[pa.Table, int]:
    with pa.ipc.open_stream(received.content) as stream:
        return stream.read_all(), int(received.headers[SNAPSHOT_HEADER])


def _read_embeddings(received: Received) -> NDArray[np.float32]:
    vectors = [base64.b64decode(item["embedding"]) for item in _read_object(received)["data"]]
    return np.frombuffer(b"".join(vectors), "<f4").astype(np.float32).reshape(len(vectors), -1)


def _read_object(received: Received) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(received.content)
    return values
