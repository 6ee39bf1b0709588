"""Settings of the endpoint's cache: what it may take of memory and disk, and how it keeps vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lodestream.pipeline.config.types import Budget, Duration, Section, Text
from lodestream.pipeline.sizes import MIB

if TYPE_CHECKING:
    from lodestream.storage.cache.layered import CacheOptions


class CacheConfig(Section):
    """What the endpoint keeps near at hand. A size of 0 turns that part off.

    ``sentence_bytes, paragraph_bytes, topic_bytes, document_bytes``  memory of each replica for stored rows
    ``text_bytes``   memory of each replica for features of texts that were encoded on demand
    ``folder``       of the pages on disk, which are kept over restarts and may be shared by processes of one machine
    ``disk_bytes``   of that folder
    ``codec``        ``int8`` keeps the stored codes; ``int4`` takes half of that, and answers from it are less exact,
                     and say so
    ``max_age``      after which a cached row goes, used or not
    """

    sentence_bytes: Budget = 32 * MIB
    paragraph_bytes: Budget = 32 * MIB
    topic_bytes: Budget = 16 * MIB
    document_bytes: Budget = 16 * MIB
    text_bytes: Budget = 32 * MIB
    folder: Text = ".lodestream-cache"
    disk_bytes: Budget = 256 * MIB
    codec: Literal["int8", "int4"] = "int8"
    max_age: Duration = 7 * 86_400.0

    def options(self, resolve: Callable[[str], Path]) -> CacheOptions:
        """The settings as the store takes them; ``resolve`` makes the folder absolute."""
        from lodestream.storage.cache.layered import CacheOptions

        return CacheOptions(
            memory_bytes={
                "sentence": self.sentence_bytes,
                "paragraph": self.paragraph_bytes,
                "topic": self.topic_bytes,
                "document": self.document_bytes,
                "text": self.text_bytes,
            },
            folder=resolve(self.folder),
            disk_bytes=self.disk_bytes,
            codec=self.codec,
            max_age_s=self.max_age,
        )
