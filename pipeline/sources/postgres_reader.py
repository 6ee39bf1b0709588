"""Texts of rows of PostgreSQL, fetched by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lodestream.pipeline.config.sources import PostgresSource
from lodestream.pipeline.sources.postgres_catalog import choose_mode, read_facts, require_columns
from lodestream.pipeline.sources.postgres_query import write_body_query
from lodestream.pipeline.sources.postgres_session import PostgresSession
from lodestream.pipeline.sources.protocol import Candidate, ReadBody, SourceState
from lodestream.pipeline.sources.row_texts import RowTexts, gone_body

_ROWS_PER_QUERY: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresReader:
    """Fetches texts. A row may have changed since it was listed: it is taken as it is, with the state it has now."""

    source: str
    config: PostgresSource

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        texts = RowTexts(
            source=self.source, text_format=self.config.text_format, max_bytes=self.config.max_document_bytes
        )
        wanted = [candidate for candidate in candidates if not texts.is_too_large(candidate)]
        rows = self._fetch([candidate.locator for candidate in wanted]) if wanted else {}
        for candidate in candidates:
            row = rows.get(candidate.locator)
            if texts.is_too_large(candidate):
                yield texts.refuse(candidate)
            elif row is None:
                yield gone_body(candidate)
            else:
                state = SourceState(version=row["version"], size_bytes=row["size_bytes"])
                yield texts.make_body(row["text"], state)

    def _fetch(self, row_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        config = self.config
        with PostgresSession(self.source, config.url) as session:
            facts = read_facts(session, self.source, config.table)
            require_columns(self.source, config, facts)
            query = write_body_query(config, facts, choose_mode(self.source, config, facts))
            rows: dict[str, dict[str, Any]] = {}
            for start in range(0, len(row_ids), _ROWS_PER_QUERY):
                found = session.query(query, list(row_ids[start : start + _ROWS_PER_QUERY]))
                rows.update({row["id"]: row for row in found})
            return rows
