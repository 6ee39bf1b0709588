"""Titles and texts, in memory, of the spans that searches of the latest snapshot found: reading a hit's document from
the store takes longer than finding the hit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lodestream.pipeline.search import SpanText, read_span_texts
from lodestream.storage.store import Snapshot

_ENTRY_BYTES: Final = 200
"""Of memory, besides the text itself, for a span and for a document: a little more than was seen."""
_LARGEST_SHARE: Final = 8
"""A text of more than this part of the memory is read each time."""


@dataclass(slots=True)
class _Document:
    texts: dict[tuple[int, int], SpanText] = field(default_factory=dict)
    num_bytes: int = _ENTRY_BYTES


class SpanTexts:
    """What memory has of one snapshot's spans; what was asked for least recently goes first, by document.

    Guarantees: a text is that of the snapshot it is asked of. Of a document that a publish changed or removed nothing
    stays. Safe for many threads.
    """

    def __init__(self, max_bytes: int) -> None:
        """Holds ``max_bytes`` of memory at most; 0 holds nothing."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._snapshot: Snapshot | None = None
        self._documents: OrderedDict[str, _Document] = OrderedDict()
        self._lock = threading.Lock()

    def advance(self, before: Snapshot | None, snapshot: Snapshot, changed: Iterable[str] | None) -> None:
        """From now on spans of ``snapshot`` are held.

        Args:
            before: the snapshot that ``changed`` is told against.
            changed: documents that it has otherwise than ``before``, or not at all; None if that is not known.
        """
        with self._lock:
            if changed is None or before is not self._snapshot:
                self._drop_all()
            else:
                for doc_id in changed:
                    self._drop(doc_id)
            self._snapshot = snapshot

    def get(self, snapshot: Snapshot, spans: Sequence[Mapping[str, Any]]) -> list[SpanText]:
        """Title and text of each span ("doc_id", "char_start", "char_end"), from memory or the store."""
        found = self._find(snapshot, spans)
        missing = [number for number, text in enumerate(found) if text is None]
        if missing:
            read = read_span_texts(snapshot, [spans[number] for number in missing])
            for number, text in zip(missing, read, strict=True):
                found[number] = text
            self._keep(snapshot, [spans[number] for number in missing], read)
        return [text for text in found if text is not None]

    def clear(self) -> None:
        """Gives everything up."""
        with self._lock:
            self._drop_all()

    @property
    def num_bytes(self) -> int:
        """Memory that is held, estimated."""
        return self._num_bytes

    def _find(self, snapshot: Snapshot, spans: Sequence[Mapping[str, Any]]) -> list[SpanText | None]:
        with self._lock:
            if snapshot is not self._snapshot:
                return [None] * len(spans)
            found: list[SpanText | None] = []
            for span in spans:
                document = self._documents.get(span["doc_id"])
                if document is not None:
                    self._documents.move_to_end(span["doc_id"])
                found.append(None if document is None else document.texts.get((span["char_start"], span["char_end"])))
            return found

    def _keep(self, snapshot: Snapshot, spans: Sequence[Mapping[str, Any]], texts: Sequence[SpanText]) -> None:
        with self._lock:
            if snapshot is not self._snapshot:  # a publish came meanwhile, and may have changed the document
                return
            for span, text in zip(spans, texts, strict=True):
                num_bytes = _ENTRY_BYTES + text.text.__sizeof__() + text.title.__sizeof__()
                place = (span["char_start"], span["char_end"])
                if num_bytes * _LARGEST_SHARE > self._max_bytes:
                    continue
                if span["doc_id"] not in self._documents:
                    self._documents[span["doc_id"]] = _Document()
                    self._num_bytes += _ENTRY_BYTES
                document = self._documents[span["doc_id"]]
                if place not in document.texts:
                    document.texts[place] = text
                    document.num_bytes += num_bytes
                    self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._documents)))

    def _drop_all(self) -> None:
        self._documents.clear()
        self._num_bytes = 0

    def _drop(self, doc_id: str) -> None:
        document = self._documents.pop(doc_id, None)
        if document is not None:
            self._num_bytes -= document.num_bytes
