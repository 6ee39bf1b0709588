"""A text that was encoded under the same recipe is not encoded again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lodestream.actors.featurizer import Featurizer
from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.cached_encoding import CachedEncoding
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import EncodedTexts
from lodestream.storage.cache.disk import DiskTier
from lodestream.storage.cache.entry import TEXT, name_text
from lodestream.storage.cache.layered import CacheOptions
from tests.support.cache_entries import make_entry
from tests.support.store_rows import DIM, make_features

LIMITS = Limits()


class CountingEncoding:
    """Encodes by the text's characters, and remembers what it was given."""

    def __init__(self, feature_version: str) -> None:
        said: Any = SimpleNamespace(feature_version=feature_version, model=SimpleNamespace(dim=DIM))
        self.featurizer = cast(Featurizer, said)
        self.given: list[str] = []

    def warm(self) -> None: ...

    async def encode(self, texts: Sequence[str], **_: Any) -> EncodedTexts:
        self.given += texts
        rows = [make_features({"0": [text]}) for text in texts]
        return EncodedTexts(rows=rows, num_tokens=[len(text) for text in texts], num_encoded_tokens=5)

    def count(self) -> Mapping[str, int]:
        return {"waiting": 0, "encoded_tokens": 0, "known_tokens": 0}

    def close(self) -> None: ...


def encode(encoding: CachedEncoding, texts: list[str]) -> EncodedTexts:
    return asyncio.run(encoding.encode(texts, text_format="text", segments=None))


def test_only_what_is_new_is_encoded() -> None:
    options = CacheOptions(memory_bytes={"text": 1 << 20}, folder=None, disk_bytes=0, codec="int8", max_age_s=1e6)
    keeper = CacheKeeper(options)
    inner = CountingEncoding("v1")
    encoding = CachedEncoding(inner, keeper, LIMITS)
    first = encode(encoding, ["one", "three", "one"])
    assert inner.given == ["one", "three", "one"]
    assert first.num_tokens == [3, 5, 3]
    assert first.num_encoded_tokens == 5
    second = encode(encoding, ["three", "four"])
    assert inner.given == ["one", "three", "one", "four"]
    assert second.rows[0].equals(first.rows[1])
    assert encode(encoding, ["four"]).num_encoded_tokens == 0
    assert encoding.count()["known_tokens"] == 5 + 4
    other = CachedEncoding(CountingEncoding("v2"), keeper, LIMITS)
    assert encode(other, ["four"]).num_encoded_tokens == 5


def test_files_are_read_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process finds a text on the disk, and what memory has needs no thread."""
    options = CacheOptions(
        memory_bytes={"text": 1 << 20}, folder=tmp_path, disk_bytes=1 << 20, codec="int8", max_age_s=1e6
    )
    keeper = CacheKeeper(options)
    keeper.open(DIM).put(TEXT, name_text("v1", "text", "one"), make_entry("0"))
    keeper.close()
    readers: list[threading.Thread] = []
    get = DiskTier.get

    def note_thread(tier: DiskTier, key: bytes) -> Any:
        readers.append(threading.current_thread())
        return get(tier, key)

    monkeypatch.setattr(DiskTier, "get", note_thread)
    keeper = CacheKeeper(options)
    encoding = CachedEncoding(CountingEncoding("v1"), keeper, LIMITS)
    for _ in range(2):
        assert encode(encoding, ["one"]).num_encoded_tokens == 0
    assert len(readers) == 1 and readers[0] is not threading.main_thread()
    keeper.close()
