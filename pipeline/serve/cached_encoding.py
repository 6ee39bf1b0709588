"""Features of texts through the cache: a text that was encoded under the same recipe is not encoded again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence

import pyarrow as pa

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.paragraphs import TextFormat
from lodestream.actors.texts import Role
from lodestream.pipeline.reuse import SegmentIndex
from lodestream.pipeline.serve.cache_keeper import CacheKeeper
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import EncodedTexts, Encoding
from lodestream.storage.cache.entry import TEXT, Entry, name_text
from lodestream.storage.cache.layered import LayeredCache
from lodestream.storage.columns import as_batch


class CachedEncoding:
    """An encoding that asks the cache first, and another one for the rest."""

    def __init__(self, encoding: Encoding, keeper: CacheKeeper, limits: Limits) -> None:
        self._encoding = encoding
        self._limits = limits
        self._keeper = keeper
        self._num_known_tokens = 0

    @property
    def featurizer(self) -> Featurizer:
        """That of the encoding behind the cache."""
        return self._encoding.featurizer

    def warm(self) -> None:
        """Readies the encoding behind the cache."""
        self._encoding.warm()

    async def encode(
        self,
        texts: Sequence[str],
        *,
        text_format: TextFormat,
        segments: SegmentIndex | None,
        role: Role = "document",
    ) -> EncodedTexts:
        """See parts.Encoding. What is refused does not hang on what the cache has."""
        cache = self._keeper.open(self.featurizer.model.dim)
        version = self.featurizer.feature_version
        if role == "query":
            # The prompt of queries is no part of the version, which names stored rows.
            version = f"{version} {role} {self.featurizer.model.query_prompt}"
        keys = [name_text(version, text_format, text) for text in texts]
        held = await _find_held(cache, dict.fromkeys(keys))
        self._num_known_tokens += sum(held[key].num_tokens for key in keys if key in held)
        wanted = [index for index, key in enumerate(keys) if key not in held]
        num_encoded = 0
        if wanted:
            chosen = [texts[index] for index in wanted]
            encoded = await self._encoding.encode(chosen, text_format=text_format, segments=segments, role=role)
            num_encoded = encoded.num_encoded_tokens
            for index, rows, num_tokens in zip(wanted, encoded.rows, encoded.num_tokens, strict=True):
                held[keys[index]] = Entry(rows=as_batch(rows), num_tokens=num_tokens)
                cache.put(TEXT, keys[index], held[keys[index]])
        self._limits.check_tokens([held[key].num_tokens for key in keys])
        return EncodedTexts(
            rows=[pa.Table.from_batches([held[key].rows]) for key in keys],
            num_tokens=[held[key].num_tokens for key in keys],
            num_encoded_tokens=num_encoded,
        )

    def count(self) -> Mapping[str, int]:
        """See parts.Encoding; tokens of texts that the cache had count as known."""
        counts = dict(self._encoding.count())
        return counts | {"known_tokens": counts["known_tokens"] + self._num_known_tokens}

    def close(self) -> None:
        """Ends the encoding behind the cache."""
        self._encoding.close()


async def _find_held(cache: LayeredCache, keys: Collection[bytes]) -> dict[bytes, Entry]:
    """The entries that the cache has. Files are read on another thread: a slow disk would hold up every request."""
    in_files = [key for key in keys if cache.needs_disk(TEXT, key)]
    found = _find_all(cache, set(keys).difference(in_files))
    if in_files:
        found |= await asyncio.to_thread(_find_all, cache, in_files)
    return found


def _find_all(cache: LayeredCache, keys: Iterable[bytes]) -> dict[bytes, Entry]:
    return {key: pair[0] for key in keys if (pair := cache.get(TEXT, key)) is not None}
