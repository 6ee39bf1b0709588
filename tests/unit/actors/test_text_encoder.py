"""Texts that are encoded on demand: the codes of a backfill, whoever else asks at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pyarrow as pa
import pytest
import torch

from lodestream.actors import text_encoder
from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.actors.prepared import PreparedSpans
from lodestream.actors.text_encoder import EncodedText, TextEncoder, TextEncoderOptions
from lodestream.errors import Overloaded, RequestTooLarge, ServeError, ServiceUnavailable
from lodestream.kernels import encoder as encoder_module
from tests.support.toy_encoder import load_toy_encoder
from tests.support.workspace import short_topics

TEXTS = ["One line.", "", *short_topics(4).values(), "One line.", "Above.\n\n# Title\n\nTwo. Sentences."]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Featurizer:
    """A featurizer whose encoder costs nothing."""
    monkeypatch.setattr(encoder_module, "load_encoder", load_toy_encoder)
    return Featurizer()


def options(**values: int) -> TextEncoderOptions:
    return TextEncoderOptions(**{"num_threads": 2, **values})


def comparable(rows: pa.Table) -> pa.Table:
    """Rows as they are in any request: without their time, and the text's index in its request."""
    return rows.drop_columns(["computed_at", "doc_id", "key"])


def assert_as_featurized(encoded: list[EncodedText], featurizer: Featurizer, texts: list[str]) -> None:
    for answer, text in zip(encoded, texts, strict=True):
        expected = featurizer.featurize(text, text_format="rst") if text else answer.rows.slice(0, 0)
        assert comparable(answer.rows).equals(comparable(expected))


def test_codes_are_those_of_a_backfill() -> None:
    """The real model: alone, in a crowd, in small batches, in large ones: the same bits."""
    featurizer = Featurizer()

    async def main(batch_tokens: int) -> list[list[EncodedText]]:
        encoder = TextEncoder(featurizer, options(batch_tokens=batch_tokens))
        try:
            alone = await encoder.encode(TEXTS, text_format="rst")
            crowd = await asyncio.gather(*(encoder.encode([text], text_format="rst") for text in TEXTS))
            return [alone, [answer for answers in crowd for answer in answers]]
        finally:
            encoder.close()

    for batch_tokens in (64, 4096):
        for encoded in asyncio.run(main(batch_tokens)):
            assert_as_featurized(encoded, featurizer, TEXTS)
            assert encoded[1].rows.num_rows == 0 < encoded[0].rows.num_rows


def test_what_is_known_is_not_encoded(toy: Featurizer) -> None:
    seen: list[int] = []

    async def main() -> None:
        encoder = TextEncoder(toy, options(), on_batch=lambda record: seen.append(record.tokens))
        first = await encoder.encode(TEXTS, text_format="rst")
        assert [a.num_encoded_tokens for a in first] == [a.num_tokens for a in first]

        def recall(all_spans: Sequence[PreparedSpans]) -> dict[bytes, LeafVectors]:
            return toy.encode_segments(all_spans[2:3], {}, EncodeCounts())

        seen.clear()
        again = await encoder.encode(TEXTS, text_format="rst", find_known=recall)
        assert [comparable(a.rows) for a in again] == [comparable(a.rows) for a in first]
        assert again[2].num_encoded_tokens == 0 < again[3].num_encoded_tokens == again[3].num_tokens
        assert sum(seen) <= sum(a.num_tokens for a in first) - again[2].num_tokens
        encoder.close()

    asyncio.run(main())


def test_limits(toy: Featurizer) -> None:
    seen: list[list[int]] = []

    def check(num_tokens: Sequence[int]) -> None:
        seen.append(list(num_tokens))
        if max(num_tokens) > 20:
            raise RequestTooLarge("too long")

    async def main() -> None:
        encoder = TextEncoder(toy, options(max_queued_tokens=60), check_tokens=check)
        with pytest.raises(RequestTooLarge, match="too long"):
            await encoder.encode(["short", "word " * 40], text_format="text")
        assert seen == [[1, 40]]
        texts = [f"{name} " * 15 for name in ("ore", "vein", "rock", "sand", "clay")]
        with pytest.raises(RequestTooLarge, match="75 tokens, the queue holds 60"):
            await encoder.encode(texts, text_format="text")
        assert len(await encoder.encode(["word " * 20] * 3, text_format="text")) == 3
        with encoder.batcher.reserve(59), pytest.raises(Overloaded):
            await encoder.encode(["three short words"], text_format="text")
        encoder.close()
        with pytest.raises(ServiceUnavailable):
            await encoder.encode(["word"], text_format="text")

    asyncio.run(main())


def test_long_requests_are_prepared_in_slices(toy: Featurizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "SLICE_CHARS", 40)
    seen: list[int] = []

    async def main() -> None:
        encoder = TextEncoder(toy, options(), check_tokens=lambda num_tokens: seen.append(len(num_tokens)))
        assert_as_featurized(await encoder.encode(TEXTS, text_format="rst"), toy, TEXTS)
        encoder.close()

    asyncio.run(main())
    assert seen[-1] == len(TEXTS) and len(seen) > 4


def test_a_text_that_breaks_the_encoder_breaks_no_other(toy: Featurizer) -> None:
    inner = toy.encode_leaves

    def encode_leaves(wanted: object, counts: object) -> object:
        if any(len(spans.token_ids) == 3 for spans, _ in wanted.values()):  # type: ignore[attr-defined]
            raise RuntimeError("out of memory")
        return inner(wanted, counts)  # type: ignore[arg-type]

    toy.encode_leaves = encode_leaves  # type: ignore[assignment,method-assign]

    async def main() -> None:
        encoder = TextEncoder(toy, options())
        texts = ["one", "one two three", "one two"]
        tasks = [encoder.encode([text], text_format="text") for text in texts]
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, ServeError) and "out of memory" not in str(bad)
        assert not isinstance(good, BaseException) and not isinstance(also_good, BaseException)
        encoder.close()

    asyncio.run(main())


def test_the_loop_is_free_and_few_tokens_take_one_thread(toy: Featurizer) -> None:
    loop_thread = threading.get_ident()
    calls: list[tuple[int, int]] = []  # (which thread, how many threads its operators take)
    inner = toy.encode_leaves

    def encode_leaves(wanted: object, counts: object) -> object:
        calls.append((threading.get_ident(), torch.get_num_threads()))
        return inner(wanted, counts)  # type: ignore[arg-type]

    toy.encode_leaves = encode_leaves  # type: ignore[assignment,method-assign]
    encoder = TextEncoder(toy, options(num_threads=3))
    encoder.warm_up()
    assert [number for _, number in calls] == [1, 3], "both ways are warm"
    assert encoder.batcher.tokens_per_s > 0
    calls.clear()

    async def main() -> None:
        await encoder.encode(["A short text."], text_format="text")
        await encoder.encode(["A long text has many words. " * 20], text_format="text")
        crowd = [f"Text {number}." for number in range(40)]
        await encoder.encode(crowd, text_format="text")  # few tokens each, many together

    asyncio.run(main())
    encoder.close()
    assert [number for _, number in calls] == [1, 3, 3]
    assert loop_thread not in {thread for thread, _ in calls}
