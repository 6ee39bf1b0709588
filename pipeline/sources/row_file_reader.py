"""Texts of rows of Parquet and JSON Lines files, by their place in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa

from lodestream.pipeline.config.sources import JsonLinesSource, ParquetSource
from lodestream.pipeline.sources.json_lines import read_line
from lodestream.pipeline.sources.parquet_rows import make_fragment, read_place
from lodestream.pipeline.sources.protocol import NO_HASH, Candidate, ReadBody
from lodestream.pipeline.sources.row_texts import RowTexts, gone_body
from lodestream.pipeline.sources.rows import RawRow

FAILED: Final = "failed"
"""First part of the locator of a row that the scan could not use; the second is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFileReader:
    """Reads rows by place. A file that was rewritten since has another row there, or none: the next run sees."""

    source: str
    config: ParquetSource | JsonLinesSource

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        texts = RowTexts(
            source=self.source, text_format=self.config.text_format, max_bytes=self.config.max_document_bytes
        )
        for candidate in candidates:
            if candidate.locator[0] == FAILED:
                yield ReadBody(
                    state=candidate.state,
                    content_hash=candidate.content_hash or NO_HASH,
                    failure=candidate.locator[1],
                )
            elif texts.is_too_large(candidate):
                yield texts.refuse(candidate)
            else:
                row = self._read(candidate)
                is_there = row is not None and texts.hash_text(row.text) == candidate.content_hash
                yield texts.make_body(row.text, candidate.state) if row and is_there else gone_body(candidate)

    def _read(self, candidate: Candidate) -> RawRow | None:
        path, status, place = candidate.locator
        config = self.config
        try:
            if config.kind == "jsonl":
                return read_line(path, place, config.id_column, config.text_column)
            key = f"{path} {status}"
            return read_place(key, partial(make_fragment, path), place, config.id_column, config.text_column)
        except (OSError, pa.ArrowException):
            return None
