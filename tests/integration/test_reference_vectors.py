"""The same vectors as the field: a paragraph that is its own segment gets what sentence-transformers gives it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.models import PACKAGED_MODELS
from lodestream.actors.options import FeaturizerOptions
from lodestream.actors.prepared import PreparedSpans, spans_from_table
from lodestream.kernels.packing import pack
from lodestream.kernels.precision import native_precision
from lodestream.kernels.span_pool.reference import mean_spans
from lodestream.storage.codec import decode_rows
from tests.support.reference_vectors import ReferenceVectors, hash_paragraph, read_reference, reference_documents

needs_bf16 = pytest.mark.skipif(native_precision() != "bf16", reason="needs a processor with avx512_bf16 or amx_bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The paragraphs of real documents that are segments of their own and known to the reference.

    ``places``: (document, first and last character) of each; ``wanted`` float32 [P, D] of the reference.
    """

    featurizer: Featurizer
    prepared: pa.Table
    places: list[tuple[str, int, int]]
    token_ids: list[NDArray[np.int32]]
    wanted: NDArray[np.float32]


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=needs_bf16)])
def compared(request: pytest.FixtureRequest) -> Compared:
    featurizer = Featurizer(FeaturizerOptions(precision=request.param, target_tokens=1))
    reference = read_reference()
    documents = reference_documents()
    prepared = featurizer.prepare(_as_table(documents))
    places, token_ids, wanted = [], [], []
    for (name, text), spans in zip(documents.items(), spans_from_table(prepared), strict=True):
        for start, end, ids in _lone_paragraphs(spans):
            vector = reference.vectors.get(hash_paragraph(text[start:end]))
            if vector is not None:
                places.append((name, start, end))
                token_ids.append(
                    np.concatenate([featurizer.tokenizer.prefix_ids, ids, featurizer.tokenizer.suffix_ids])
                )
                wanted.append(vector)
    return Compared(
        featurizer=featurizer, prepared=prepared, places=places, token_ids=token_ids, wanted=np.stack(wanted)
    )


def test_reference_was_made_with_the_pinned_weights(compared: Compared) -> None:
    reference: ReferenceVectors = read_reference()
    pinned = PACKAGED_MODELS[compared.featurizer.options.model].weights_sha256
    assert reference.made_with["weights_sha256"] == pinned == compared.featurizer.model.weights_sha256
    # Another Python has reworded some of its pages, never most of them.
    assert len(compared.places) >= 0.5 * len(reference.vectors) >= 150


def test_before_the_codec(compared: Compared) -> None:
    found = []
    for start in range(0, len(compared.token_ids), 32):
        batch = pack(compared.token_ids[start : start + 32])
        bounds = batch.cu_seqlens.long()
        found.append(mean_spans(compared.featurizer.encoder.encode(batch), bounds[:-1], bounds[1:]).numpy())
    cosines = _cosines(np.concatenate(found), compared.wanted)
    assert cosines.min() >= 0.9999, _worst(compared, cosines)


def test_after_the_codec(compared: Compared) -> None:
    """What a store holds: sentences or the whole paragraph as int8 leaves, combined and coded again."""
    rows = compared.featurizer.encode(compared.prepared, {}, run_id="test").features
    rows = rows.filter(pc.equal(rows.column("granularity"), "paragraph"))
    codes = rows.column("codes").combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    vectors = decode_rows(codes, rows.column("scale").to_numpy())
    names = zip(*(rows.column(name).to_pylist() for name in ("doc_id", "char_start", "char_end")), strict=True)
    by_place = dict(zip(names, vectors, strict=True))
    cosines = _cosines(np.stack([by_place[place] for place in compared.places]), compared.wanted)
    assert cosines.min() >= 0.999, _worst(compared, cosines)


def _lone_paragraphs(spans: PreparedSpans) -> Iterator[tuple[int, int, NDArray[np.int32]]]:
    """(first character, end, token ids) of every paragraph that fills one segment."""
    leaves = {tuple(run): row for row, run in enumerate(spans.paragraph_leaves.tolist())}
    for run, (start, end) in zip(spans.segment_leaves.tolist(), spans.segment_tokens.tolist(), strict=True):
        if tuple(run) in leaves:
            chars = spans.paragraph_chars[leaves[tuple(run)]].tolist()
            yield chars[0], chars[1], spans.token_ids[start:end]


def _as_table(documents: dict[str, str]) -> pa.Table:
    names = list(documents)
    empty = [""] * len(names)
    hashes = [hashlib.sha256(text.encode()).digest() for text in documents.values()]
    return pa.table(
        {
            "doc_id": names,
            "source": empty,
            "uri": empty,
            "content_hash": pa.array(hashes, pa.binary(32)),
            "source_version": empty,
            "text": pa.array(list(documents.values()), pa.large_string()),
            "text_format": ["rst"] * len(names),
        }
    )


def _cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _worst(compared: Compared, cosines: NDArray[np.float64]) -> str:
    worst = int(cosines.argmin())
    return f"{cosines[worst]:.6f} for {compared.places[worst]}, {compared.featurizer.precision}"
