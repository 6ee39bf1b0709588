"""The typed contract of the HTTP routes: what each takes and what it answers. The server, its OpenAPI document, the
Python client and the tests all use these classes.

Vectors come in one of three encodings: ``float`` is a list of numbers, ``base64`` the same float32 values (little
endian), ``int8`` the stored codes in base64 with their ``scale`` (vector = codes x scale).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, model_validator

from lodestream.schema import GRANULARITIES, Granularity

JSON: Final = "application/json"
ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
PROBLEM_JSON: Final = "application/problem+json"

MAX_ID_CHARS: Final = 4096
MAX_HITS: Final = 1000

DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
SnapshotChoice = Literal["latest"] | Annotated[int, Field(ge=1, le=2**63 - 1)]
VectorEncoding = Literal["float", "base64", "int8"]
TextFormat = Literal["markdown", "rst", "text"]
Share = Annotated[float, Field(ge=0, le=1)]

Item = TypeVar("Item")


class FirstErrorOnly(FailFast):
    """One wrong item of a list says enough: a million of them would make a million errors."""

    __hash__ = object.__hash__  # unions of types want their members hashable


Listed = Annotated[list[Item], FirstErrorOnly()]

FeatureStatus = Literal["FOUND", "NOT_FOUND", "PENDING", "QUARANTINED"]
"""FOUND: its features are those of its last version seen. PENDING: an unfinished run has them, and will publish them.
QUARANTINED: its last version could not be used; the features, if any, are those of the last version that could."""


class Request(BaseModel):
    """What a route takes: no unknown names, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Answer(BaseModel):
    """What a route answers."""

    model_config = ConfigDict(frozen=True)


class FeaturesRequest(Request):
    """``POST /v1/features:get``"""

    ids: Listed[DocumentId] = Field(min_length=1, description="Documents, as search names them.")
    granularities: list[Granularity] = Field(default=list(GRANULARITIES), min_length=1)
    snapshot: SnapshotChoice = "latest"
    encoding: VectorEncoding = "float"


class Feature(Answer):
    """One span's row. ``vector`` in the encodings float and base64; ``codes`` and ``scale`` in int8."""

    granularity: Granularity
    ordinal: int
    parent: int
    kind: str
    char_start: int
    char_end: int
    token_count: int
    density: float
    vector: list[float] | str | None = None
    codes: str | None = None
    scale: float | None = None


class DocumentFeatures(Answer):
    """What a snapshot has of one document. ``computed_at``: when the newest of its vectors was computed. ``lossy``: its
    vectors come from a cache that keeps them in four bits (``cache.codec``), less exact than the stored ones."""

    id: str
    status: FeatureStatus
    reason: str | None = None
    source: str | None = None
    source_version: str | None = None
    computed_at: datetime | None = None
    lossy: bool = False
    features: list[Feature] = []


class FeaturesAnswer(Answer):
    """One result per id of the request, in its order, all of one snapshot."""

    snapshot: int
    feature_version: str
    results: list[DocumentFeatures]


class EncodeRequest(Request):
    """``POST /v1/encode``: features of texts that need not be in the store."""

    texts: Listed[str] = Field(min_length=1)
    text_format: TextFormat = "text"
    granularities: list[Granularity] = Field(default=list(GRANULARITIES), min_length=1)
    encoding: VectorEncoding = "float"


class TextFeatures(Answer):
    """Features of one text; ``num_tokens`` without special tokens."""

    index: int
    num_tokens: int
    features: list[Feature]


class EncodeAnswer(Answer):
    """One result per text. ``num_encoded_tokens`` went through the encoder; the others were known."""

    snapshot: int
    feature_version: str
    results: list[TextFeatures]
    num_tokens: int
    num_encoded_tokens: int


class EmbeddingsRequest(Request):
    """``POST /v1/embeddings``, in OpenAI's shape. ``input_type`` is ours: a query gets the model's prompt for it."""

    input: str | Listed[str] = Field(description="One text, or several. Token ids are not taken.")
    model: str = Field(description="The store's model, its last path part, or `lodestream`.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, description="If given, the width that the model has.")
    user: str | None = Field(default=None, description="Taken for compatibility, and not kept.")
    input_type: Literal["document", "query"] = "document"


class Embedding(Answer):
    """One vector: numbers, or float32 values (little endian) in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Answer):
    """Tokens of the input, special ones not counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    """OpenAI's list of embeddings, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class SearchRequest(Request):
    """``POST /v1/search``: the spans nearest to a text, or to a vector."""

    query: str | None = Field(default=None, min_length=1)
    vector: Listed[float] | None = Field(
        default=None, min_length=1, description="Instead of a query; of any length > 0."
    )
    limit: int = Field(default=10, ge=1, le=MAX_HITS)
    granularity: Granularity = "paragraph"
    min_density: Share | None = None
    source: str | None = Field(default=None, min_length=1, max_length=MAX_ID_CHARS)
    headings: bool = False
    snapshot: SnapshotChoice = "latest"
    exact: bool = Field(default=False, description="Look at every row, also where that takes long.")

    @model_validator(mode="after")
    def _check_query(self) -> SearchRequest:
        if (self.query is None) == (self.vector is None):
            raise ValueError("give either query or vector")
        return self


class SearchHit(Answer):
    """A span and the cosine of its vector and the query's; ``text`` is the span's text."""

    doc_id: str
    title: str
    granularity: Granularity
    ordinal: int
    kind: str
    char_start: int
    char_end: int
    density: float
    score: float
    text: str


class SearchAnswer(Answer):
    """Hits of one snapshot, best first. ``exact``: no nearer span can be missing; else /v1/status has the recall."""

    snapshot: int
    feature_version: str
    exact: bool = True
    hits: list[SearchHit]


class DensityRequest(Request):
    """``POST /v1/density``: how dense the paragraphs of texts, or of stored documents, are."""

    texts: Listed[str] | None = Field(default=None, min_length=1)
    ids: Listed[DocumentId] | None = Field(default=None, min_length=1)
    text_format: TextFormat = "text"
    snapshot: SnapshotChoice = "latest"

    @model_validator(mode="after")
    def _check_input(self) -> DensityRequest:
        if (self.texts is None) == (self.ids is None):
            raise ValueError("give either texts or ids")
        return self


class DensityRegion(Answer):
    """Paragraphs in a row on one side of the threshold: dense ones have sentence features, sparse ones have not."""

    dense: bool
    char_start: int
    char_end: int
    num_paragraphs: int


class ParagraphDensity(Answer):
    """One paragraph's score in [0, 1]."""

    ordinal: int
    kind: str
    char_start: int
    char_end: int
    token_count: int
    density: float


class DensityResult(Answer):
    """Of one text or document; ``id`` is None for a text. ``density`` is the token-weighted mean."""

    index: int
    id: str | None = None
    status: FeatureStatus = "FOUND"
    density: float | None = None
    regions: list[DensityRegion] = []
    paragraphs: list[ParagraphDensity] = []


class DensityAnswer(Answer):
    """One result per text or id; ``threshold`` parts dense from sparse."""

    snapshot: int
    threshold: float
    results: list[DensityResult]


class SnapshotDescription(Answer):
    """A snapshot that can be asked for by its number."""

    sequence: int
    published_at: datetime | None
    run_id: str
    feature_version: str
    latest: bool


class SnapshotsAnswer(Answer):
    """``GET /v1/snapshots``, newest first."""

    snapshots: list[SnapshotDescription]


class Readiness(Answer):
    """``GET /readyz``: ready or degraded answer 200, the others 503. ``reason`` says why and what to type."""

    status: Literal["ready", "degraded", "empty", "starting", "unavailable", "stopping"]
    reason: str
    snapshot: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether requests for data are answered."""
        return self.status in ("ready", "degraded")


class Problem(Answer):
    """An error, as RFC 9457 has it. ``hint`` says what to do next; ``message`` is what OpenAI's client shows."""

    type: str
    title: str
    status: int
    detail: str
    message: str | None = None
    request_id: str | None = None
    hint: str | None = None
    errors: list[dict[str, Any]] | None = None
