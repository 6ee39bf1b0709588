"""The texts that the store keeps, read in the place of documents: another feature version is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lodestream.actors.paragraphs import TextFormat
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.config.sources import TableSection
from lodestream.pipeline.sources.formats import DocumentFormat, format_of
from lodestream.pipeline.sources.protocol import Candidate, ReadBody
from lodestream.pipeline.states import find_rows
from lodestream.storage.store import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTexts:
    """Reads texts from a snapshot, as ``sources.protocol.BodyReader``; no source is asked.

    ``formats``  of the texts of sources whose documents have no names with extensions, by the source's name
    """

    snapshot: Snapshot
    formats: Mapping[str, DocumentFormat]

    def read(self, candidates: Sequence[Candidate]) -> Iterator[ReadBody]:
        """See ``BodyReader.read``."""
        doc_ids = [candidate.doc_id for candidate in candidates]
        rows = find_rows(self.snapshot, "documents", doc_ids, ("doc_id", "content_hash", "text"))
        found = {row["doc_id"]: row for row in rows.to_pylist()}
        for candidate in candidates:
            row = found[candidate.doc_id]
            yield ReadBody(
                state=candidate.state,
                content_hash=row["content_hash"],
                text=row["text"],
                text_format=self._text_format(candidate),
            )

    def _text_format(self, candidate: Candidate) -> TextFormat:
        document_format = self.formats.get(candidate.source) or format_of(candidate.doc_id)
        # What is stored of a page is the Markdown that was made of it.
        return "markdown" if document_format == "html" else document_format


def read_formats(loaded: LoadedConfig) -> dict[str, DocumentFormat]:
    """The formats of the configured sources whose rows are documents, by the source's name."""
    sources = loaded.config.sources.items()
    return {name: config.text_format for name, config in sources if isinstance(config, TableSection)}
