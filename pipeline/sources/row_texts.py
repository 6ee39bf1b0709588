"""Texts of rows as bodies of documents: their size, their hash, and what their format hides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lodestream.errors import DocumentError
from lodestream.pipeline.sources.formats import (
    DocumentFormat,
    describe_failure,
    extract_bytes,
    hash_body,
    reading_version,
)
from lodestream.pipeline.sources.protocol import NO_HASH, Candidate, ReadBody, SourceState


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTexts:
    """How the texts of a source are taken: their format, and the largest in bytes of UTF-8."""

    source: str
    text_format: DocumentFormat
    max_bytes: int

    def hash_text(self, text: bytes) -> bytes:
        """The content hash of a text in UTF-8."""
        return hash_body(text, reading_version(self.text_format))

    def is_too_large(self, candidate: Candidate) -> bool:
        """Whether a text need not be fetched at all."""
        return candidate.size_bytes > self.max_bytes

    def refuse(self, candidate: Candidate) -> ReadBody:
        """A body that was not fetched because it is too large."""
        size = f"{candidate.size_bytes} {candidate.state.version}"
        return ReadBody(
            state=candidate.state,
            content_hash=candidate.content_hash or hashlib.sha256(size.encode()).digest(),
            failure=f"{candidate.size_bytes} bytes, more than max_document_bytes = {self.max_bytes}; raise "
            f"sources.{self.source}.max_document_bytes or split the text",
        )

    def make_body(self, text: bytes, state: SourceState) -> ReadBody:
        """The body of a fetched text; bytes that are not UTF-8 fail, as does what is no text."""
        content_hash = self.hash_text(text)
        try:
            found = extract_bytes(
                text, self.text_format, encoding="utf-8", setting=f"sources.{self.source}.text_column"
            )
        except DocumentError as error:
            return ReadBody(state=state, content_hash=content_hash, failure=describe_failure(error))
        return ReadBody(state=state, content_hash=content_hash, text=found.text, text_format=found.text_format)


def gone_body(candidate: Candidate) -> ReadBody:
    """The answer for a row that is no longer there."""
    return ReadBody(state=candidate.state, content_hash=NO_HASH, is_gone=True)
