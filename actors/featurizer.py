"""The one featurizer of the three uses: batch backfill, scheduled refresh, online endpoint.

    prepare   text -> paragraphs, sentences, segments, density        (CPU, no weights loaded)
    encode    segments -> leaf vectors -> rows of every granularity   (weights loaded on first use)

Between the two the caller may fill segments from a store: ``encode`` takes what is ``known`` by fingerprint and sends
only the rest to the encoder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lodestream.actors.attention import SPARSE_FROM, AttentionPolicy, explain_dense, find_obstacle, make_policy
from lodestream.actors.density import DensityModel
from lodestream.actors.documents import build_document_rows, name_documents
from lodestream.actors.features import LeafVectors, build_feature_rows, concat_leaves
from lodestream.actors.layout import lay_out
from lodestream.actors.models import PACKAGED_MODELS, find_model
from lodestream.actors.options import EncodeCounts, FeaturizerOptions
from lodestream.actors.outlines import outline_texts
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.prepared import PreparedSpans, empty_spans, spans_from_table, spans_to_columns
from lodestream.actors.prompts import leave_room, tokenize_prompts
from lodestream.actors.segment import SPANS_VERSION, Outline, SegmentOptions
from lodestream.actors.texts import Role, make_documents
from lodestream.actors.tokenize import Tokenizer, identify_tokenizer
from lodestream.errors import ConfigError, DocumentError
from lodestream.kernels.precision import ENGINE, name_states, native_precision
from lodestream.kernels.weights import ModelFolder, check_weights, read_model_folder

if TYPE_CHECKING:
    from lodestream.actors.leaf_encoder import LeafEncoder
    from lodestream.kernels.encoder import Encoder

RECIPE_VERSION: Final = 1
"""Raised when this file changes what a vector depends on."""

CODEC: Final = "int8-f16"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """Rows of the tables ``features`` and ``documents`` for the same documents, and how they came about.

    ``encoded``: the leaves that this call computed, by segment fingerprint.
    """

    features: pa.Table
    documents: pa.Table
    encoded: Mapping[bytes, LeafVectors]
    counts: EncodeCounts


class Featurizer:
    """Turns texts into features. Guarantees: the same text gives the same codes, whatever shares its batch.

    Not thread-safe while encoding (torch runs its own threads); ``prepare`` may run in several threads. Picklable: a
    copy in another process loads its own weights on first use.

    Example:
        >>> features = Featurizer().featurize("Two sentences. They become rows.")
        >>> features.num_rows  # document, topic, paragraph, two sentences
        5
    """

    def __init__(self, options: FeaturizerOptions | None = None) -> None:
        self.options = options or FeaturizerOptions()

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    @cached_property
    def _found(self) -> tuple[Path, str | None]:
        folder, pinned = find_model(self.options.model)
        return folder, pinned or self.options.weights_sha256 or None

    @cached_property
    def model(self) -> ModelFolder:
        """The model's folder: files present, architecture supported. Of a pinned hash see ``check_model``."""
        folder, expected_sha256 = self._found
        return read_model_folder(folder, expected_sha256=expected_sha256)

    def check_model(self) -> None:
        """Looks at what only an encode needs: the weights' pinned hash, and whether tokenizer.json is a tokenizer. So a
        bad model is refused before the work begins.

        Raises:
            ModelError: one of them is not as it should be.
        """
        self.model = check_weights(self.model)
        _ = self.tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self._found[0])

    @cached_property
    def density(self) -> DensityModel:
        return DensityModel.default()

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder; loads torch and the weights on first use."""
        from lodestream.kernels.encoder import load_encoder

        return load_encoder(self.model, precision=self.precision)

    @cached_property
    def _leaf_encoder(self) -> LeafEncoder:
        from lodestream.actors.leaf_encoder import LeafEncoder

        return LeafEncoder(
            self.encoder,
            special_before=self.tokenizer.prefix_ids,
            special_after=self.tokenizer.suffix_ids,
            batch_tokens=self.options.batch_tokens,
            policy=self.attention,
            num_layers=len(self.model.description.layers),
        )

    @cached_property
    def precision(self) -> Any:
        """The precision class that vectors are computed in: "bf16" or "fp32"."""
        return native_precision() if self.options.precision == "auto" else self.options.precision

    @cached_property
    def segment_options(self) -> SegmentOptions:
        max_tokens = self.options.max_tokens or self.model.max_seq_length
        if max_tokens > self.model.max_positions:
            raise ConfigError(
                f"segment.max_tokens = {max_tokens}, but the model reads {self.model.max_positions} tokens at most",
                f"set it to {self.model.max_positions} or less (0 = the model's own {self.model.max_seq_length})",
            )
        return SegmentOptions(
            max_tokens=max_tokens,
            target_tokens=self.options.target_tokens,
            over_headings=self.options.over_headings,
            heading_prefix=self.options.heading_prefix,
        )

    @cached_property
    def _prompts(self) -> Mapping[Role, NDArray[np.int32]]:
        return tokenize_prompts(self.model, self.tokenizer)

    @property
    def engine(self) -> str:
        """What computes, as the tables of the gate name it."""
        return f"{ENGINE} {self.precision}"

    @property
    def needs_gate(self) -> bool:
        """Whether a segment may be so long that a gate decides how it is attended, and there is none yet."""
        is_long = self.segment_options.max_tokens >= SPARSE_FROM["auto"]
        is_open = self.options.attention == "auto" and self.options.gate is None
        return is_open and is_long and find_obstacle(self.model.description) is None

    @cached_property
    def attention(self) -> AttentionPolicy | None:
        """Which segments are attended sparsely; None where none can be, ``why_dense`` says why."""
        mode, obstacle = self.options.attention, find_obstacle(self.model.description)
        if obstacle and mode == "sparse":
            raise ConfigError(
                f"encoder.attention = sparse, but of this model {obstacle}", "set encoder.attention to auto or dense"
            )
        if obstacle or self.segment_options.max_tokens < SPARSE_FROM[mode]:
            return None
        return make_policy(
            mode, self.options.quality, self.options.gate, engine=self.engine, head_dim=self.model.description.head_dim
        )

    @property
    def why_dense(self) -> str | None:
        """Why no segment can be sparse; None where one can."""
        return explain_dense(
            self.options.attention, self.model.description, self.attention, max_tokens=self.segment_options.max_tokens
        )

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that a stored row depends on besides the text; ``feature_version`` is its hash."""
        # Where no segment can be long enough, what is set about it changes nothing.
        own: dict[str, Any] = {} if self.attention is None else {"attention": self.attention.as_dict()}
        is_packaged = self.options.model in PACKAGED_MODELS
        # Of a packaged model, config.json is pinned with the package; it is what it was before recipes named it.
        if not is_packaged:
            own["description"] = self.model.description_sha256[:16]
        if self.model.document_prompt:
            own["document_prompt"] = self.model.document_prompt
        return own | {
            "model": self.options.model if is_packaged else self._found[0].name,
            "weights_sha256": self.model.weights_sha256,
            "tokenizer_sha256": identify_tokenizer(self._found[0]),
            "architecture": self.model.architecture,
            "pooling": self.model.pooling,
            "dim": self.model.dim,
            "precision": self.precision,
            "engine": name_states(self.precision, max_tokens=self.segment_options.max_tokens),
            "codec": CODEC,
            "density": self.density.identity,
            "base_below": self.options.base_below,
            "segment": _describe_segments(self.segment_options),
            "spans_version": SPANS_VERSION,
            "recipe_version": RECIPE_VERSION,
        }

    @cached_property
    def feature_version(self) -> str:
        """16 hex digits that name the recipe."""
        return _hash_recipe(self.recipe)

    @cached_property
    def _vector_recipe(self) -> bytes:
        # What one leaf's vector depends on: cutting and density rules act through the tokens and leaves alone, so
        # that a change of theirs leaves the vectors of unchanged segments usable.
        names = ["weights_sha256", "tokenizer_sha256", "architecture", "pooling", "precision", "engine", "codec"]
        names += ["description"] if "description" in self.recipe else []
        return _hash_recipe({name: self.recipe[name] for name in names} | {"version": RECIPE_VERSION}).encode()

    # ---- prepare ---------------------------------------------------------------------------------------------------

    def prepare(self, documents: pa.Table, counts: EncodeCounts | None = None, *, role: Role = "document") -> pa.Table:
        """Cuts documents into spans and segments and scores their density.

        Args:
            documents: columns doc_id, source, uri, content_hash, source_version, text, text_format; a row without
                text (and perhaps with a quarantine_reason of its own) passes through without spans.
            counts: where the stages' seconds are added.
            role: whose prompt goes before the segments, that of documents or that of queries.

        Returns:
            ``documents`` with title, num_tokens, quarantine_reason (null where all is well) and the columns of
            prepared.spans_to_columns. A document that fails has a reason and no spans; the others go on.
        """
        counts = counts or EncodeCounts()
        texts = documents.column("text").to_pylist()
        formats = documents.column("text_format").to_pylist()
        prompt_ids = self._prompts[role]
        started = time.perf_counter()
        options = leave_room(self.segment_options, len(prompt_ids))
        outlines, reasons = outline_texts(texts, formats, self.tokenizer, options)
        started = counts.clock("segment+tokenise", started)
        if "quarantine_reason" in documents.column_names:
            given = documents.column("quarantine_reason").to_pylist()
            reasons = [reason or earlier for reason, earlier in zip(reasons, given, strict=True)]
        densities = self._score(texts, outlines)
        counts.clock("density", started)
        spans = [
            self._lay_out(outline, density, prompt_ids)
            if outline is not None and len(outline.token_ids)
            else empty_spans()
            for outline, density in zip(outlines, densities, strict=True)
        ]
        columns: dict[str, Any] = {
            **{name: documents.column(name) for name in documents.column_names},
            "title": pa.array([o.title if o else "" for o in outlines], pa.string()),
            "num_tokens": pa.array([len(s.token_ids) for s in spans], pa.int64()),
            "quarantine_reason": pa.array(reasons, pa.string()),
            **spans_to_columns(spans),
        }
        return pa.table(columns)

    def _score(self, texts: Sequence[str | None], outlines: Sequence[Outline | None]) -> list[NDArray[np.float32]]:
        paragraphs = [
            text[start:end]
            for text, outline in zip(texts, outlines, strict=True)
            if outline is not None and text is not None
            for start, end in outline.paragraph_chars.tolist()
        ]
        scores = self.density.score(paragraphs)
        sizes = [0 if o is None else len(o.paragraph_chars) for o in outlines]
        return np.split(scores, np.cumsum(sizes)[:-1]) if sizes else []

    def _lay_out(self, outline: Outline, density: NDArray[np.float32], prompt_ids: NDArray[np.int32]) -> PreparedSpans:
        fine = density >= self.options.base_below if self._has_sentences else np.zeros(len(density), np.bool_)
        return lay_out(
            outline,
            density,
            fine,
            vector_recipe=self._vector_recipe,
            num_special=(len(self.tokenizer.prefix_ids), len(self.tokenizer.suffix_ids)),
            prompt_ids=prompt_ids,
            policy=self.attention,
        )

    @property
    def _has_sentences(self) -> bool:
        # A model that pools by [CLS] or by its last token has one vector a segment: a leaf is the whole paragraph.
        return self.model.pooling == "mean"

    # ---- encode ----------------------------------------------------------------------------------------------------

    def encode(self, prepared: pa.Table, known: Mapping[bytes, LeafVectors], *, run_id: str) -> EncodedBatch:
        """Encodes the segments that are not ``known`` and builds all rows.

        Args:
            prepared: a table from ``prepare``.
            known: leaf vectors by segment fingerprint, of any subset of the segments.
            run_id: the run that writes the rows.

        Returns:
            Feature rows and document rows of every document of ``prepared``; documents with a quarantine reason have
            no feature rows.
        """
        counts = EncodeCounts()
        all_spans = list(spans_from_table(prepared))
        encoded = self.encode_segments(all_spans, known, counts)
        started = time.perf_counter()
        now_us = time.time_ns() // 1000
        dim = self.model.dim
        names = name_documents(prepared)
        features = build_feature_rows(
            (
                (name, spans, concat_leaves([known.get(f) or encoded[f] for f in spans.fingerprints()], dim))
                for name, spans in zip(names, all_spans, strict=True)
                if spans.num_segments
            ),
            dim=dim,
            num_special=(len(self.tokenizer.prefix_ids), len(self.tokenizer.suffix_ids)),
            run_id=run_id,
        )
        documents = build_document_rows(
            prepared, all_spans, feature_version=self.feature_version, now_us=now_us, run_id=run_id
        )
        counts.clock("combine", started)
        return EncodedBatch(features=features, documents=documents, encoded=encoded, counts=counts)

    def encode_segments(
        self, all_spans: Sequence[PreparedSpans], known: Mapping[bytes, LeafVectors], counts: EncodeCounts
    ) -> dict[bytes, LeafVectors]:
        """Leaf vectors by fingerprint of all segments that are not ``known``; each fingerprint is encoded once."""
        wanted: dict[bytes, tuple[PreparedSpans, int]] = {}
        for spans in all_spans:
            counts.segments_total += spans.num_segments
            counts.tokens_total += len(spans.token_ids)
            base = np.flatnonzero(~spans.paragraph_fine)
            runs = spans.leaf_tokens[spans.paragraph_leaves[base, 0]]
            counts.tokens_base += int((runs[:, 1] - runs[:, 0]).sum())
            for row, fingerprint in enumerate(spans.fingerprints()):
                if fingerprint not in known and fingerprint not in wanted:
                    wanted[fingerprint] = (spans, row)
        return self.encode_leaves(wanted, counts) if wanted else {}

    def encode_leaves(
        self, wanted: Mapping[bytes, tuple[PreparedSpans, int]], counts: EncodeCounts
    ) -> dict[bytes, LeafVectors]:
        """Leaf vectors of single segments: fingerprint -> a document's spans and the segment's index there."""
        return self._leaf_encoder.encode(wanted, counts)

    # ---- one text --------------------------------------------------------------------------------------------------

    def featurize(
        self, text: str, *, text_format: TextFormat = "markdown", doc_id: str = "text", role: Role = "document"
    ) -> pa.Table:
        """Features of one text, by the same stages as a backfill; ``role``: see ``prepare``.

        Returns:
            A table of schema.features_schema(D), empty for a text without a token.

        Raises:
            DocumentError: the text cannot be used.
        """
        prepared = self.prepare(make_documents([text], text_format, doc_ids=[doc_id]), role=role)
        reason = prepared.column("quarantine_reason")[0].as_py()
        if reason:
            raise DocumentError(reason)
        return self.encode(prepared, {}, run_id="").features

    def embed(self, text: str) -> NDArray[np.float32]:
        """float32 [D]: the unit vector of a query, with the prompt that the model wants before it."""
        rows = self.featurize(text, text_format="text", role="query")
        if not rows.num_rows:
            raise DocumentError("the text has no token to encode", "give a text with at least one word")
        codes = rows.column("codes")[0].values.to_numpy().astype(np.float32)
        return np.asarray(codes / np.linalg.norm(codes), np.float32)


def _describe_segments(options: SegmentOptions) -> dict[str, Any]:
    # Recipes from before there was the option do not name it, and mean the same.
    return {name: value for name, value in asdict(options).items() if name != "over_headings" or value}


def _hash_recipe(recipe: Mapping[str, Any]) -> str:
    body = repr(sorted(recipe.items())).encode()
    return hashlib.blake2b(body, digest_size=8).hexdigest()
