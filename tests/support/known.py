"""What a source is told that the store knows, as a plain mapping."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lodestream.pipeline.sources.protocol import KnownDocument, ReadBody, Source, SourceChanges


class Known:
    """The documents that are known."""

    def __init__(self, documents: Mapping[str, KnownDocument] | None = None) -> None:
        self.documents = dict(documents or {})

    def load(self) -> Mapping[str, KnownDocument]:
        return self.documents

    def find(self, doc_ids: Collection[str]) -> Mapping[str, KnownDocument]:
        return {doc_id: self.documents[doc_id] for doc_id in doc_ids if doc_id in self.documents}


class Follower:
    """A store in miniature: follows a source as a refresh does, keeping texts, failures, states and the cursor."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.texts: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.known = Known()
        self.cursor: Mapping[str, object] | None = None
        self.incarnation = ""
        self.num_read = 0

    def refresh(self, **options: Collection[str]) -> SourceChanges:
        """One refresh."""
        incarnation = self.source.incarnation()
        since = self.cursor if incarnation == self.incarnation else None
        changes = self.source.changes(since, self.known, **options)
        before = self.known.documents
        wanted = [
            candidate
            for candidate in changes.upserts
            if candidate.content_hash is None
            or candidate.doc_id not in before
            or before[candidate.doc_id].content_hash != candidate.content_hash
        ]
        same = [candidate for candidate in changes.upserts if candidate not in wanted]
        bodies = list(self.source.reader().read(wanted))
        self.num_read = len(bodies)
        for candidate, body in zip(wanted, bodies, strict=True):
            self._take(candidate.doc_id, body)
        for candidate in same:
            before[candidate.doc_id] = replace(before[candidate.doc_id], state=candidate.state)
        gone = set(changes.tombstones) - {candidate.doc_id for candidate in changes.upserts}
        if changes.listed is not None:
            gone |= before.keys() - changes.listed
        for doc_id in gone:
            for kept in (self.texts, self.failures, self.known.documents):
                kept.pop(doc_id, None)
        self.cursor, self.incarnation = changes.cursor, incarnation
        return changes

    def _take(self, doc_id: str, body: ReadBody) -> None:
        if body.is_gone:
            return
        self.known.documents[doc_id] = KnownDocument(state=body.state, content_hash=body.content_hash)
        if body.failure is not None:
            self.failures[doc_id] = body.failure
        else:
            assert body.text is not None
            self.texts[doc_id] = body.text
            self.failures.pop(doc_id, None)
