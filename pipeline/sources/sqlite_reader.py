"""Texts of rows of a SQLite file, fetched by id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lodestream.pipeline.config.sources import SqliteSource
from lodestream.pipeline.sources.protocol import Candidate, ReadBody, SourceState
from lodestream.pipeline.sources.row_texts import RowTexts, gone_body
from lodestream.pipeline.sources.sqlite_query import choose_mode, write_bodies_query
from lodestream.pipeline.sources.sqlite_session import SqliteSession

_ROWS_PER_QUERY: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteReader:
    """Fetches texts. A row may have changed since it was listed: it is taken as it is, with the state it has now."""

    source: str
    path: str
    config: SqliteSource

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        texts = RowTexts(
            source=self.source, text_format=self.config.text_format, max_bytes=self.config.max_document_bytes
        )
        wanted = [candidate for candidate in candidates if not texts.is_too_large(candidate)]
        rows = self._fetch([candidate.locator for candidate in wanted]) if wanted else {}
        for candidate in candidates:
            row = rows.get(str(candidate.locator))
            if texts.is_too_large(candidate):
                yield texts.refuse(candidate)
            elif row is None:
                yield gone_body(candidate)
            else:
                state = SourceState(version=row["version"], size_bytes=len(row["text"]))
                yield texts.make_body(row["text"], state)

    def _fetch(self, row_ids: Sequence[int | float | str]) -> dict[str, dict[str, Any]]:
        with SqliteSession(self.source, Path(self.path)) as session, session.snapshot():
            query = write_bodies_query(self.config, choose_mode(session, self.source, self.config).mode)
            rows = {}
            for start in range(0, len(row_ids), _ROWS_PER_QUERY):
                found = session.query(query, json.dumps(row_ids[start : start + _ROWS_PER_QUERY]))
                rows.update({row["id"]: row for row in found})
            return rows
