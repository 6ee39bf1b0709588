"""Texts of requests: cut and scored like documents, checked against the limits, put together as vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.texts import Role, make_documents
from lodestream.errors import RequestInvalid
from lodestream.pipeline.reuse import SegmentIndex
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import EncodedTexts, Encoding


def prepare_texts(featurizer: Featurizer, texts: Sequence[str], text_format: TextFormat, limits: Limits) -> pa.Table:
    """Texts as a table of ``Featurizer.prepare``, one row a text; the doc_id is its index.

    Raises:
        RequestTooLarge: too many texts or tokens.
        RequestInvalid: a text cannot be used.
    """
    limits.check_texts(texts)
    doc_ids = [str(index) for index in range(len(texts))]
    prepared = featurizer.prepare(make_documents(texts, text_format, doc_ids=doc_ids))
    for index, reason in enumerate(prepared.column("quarantine_reason").to_pylist()):
        if reason is not None:
            raise RequestInvalid(f"text {index} cannot be used: {reason}")
    limits.check_tokens(prepared.column("num_tokens").to_pylist())
    return prepared


async def embed_texts(
    encoding: Encoding,
    texts: Sequence[str],
    *,
    role: Role,
    segments: SegmentIndex | None = None,
) -> tuple[NDArray[np.float32], EncodedTexts]:
    """float32 [N, D]: the unit vector of each text as a whole; a query gets the prompt that the model wants before it.

    Raises:
        RequestInvalid: a text has no token. Otherwise as ``Encoding.encode``.
    """
    encoded = await encoding.encode(texts, text_format="text", segments=segments, role=role)
    vectors = []
    for index, rows in enumerate(encoded.rows):
        whole = rows.filter(pc.equal(rows.column("granularity"), "document"))
        if not whole.num_rows:
            raise RequestInvalid(f"text {index} has no token to encode", "give a text with at least one word")
        codes = whole.column("codes")[0].values.to_numpy().astype(np.float32)
        vectors.append(codes / np.linalg.norm(codes))
    return np.asarray(vectors, np.float32), encoded
