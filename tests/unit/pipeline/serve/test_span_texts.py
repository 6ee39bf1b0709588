"""Texts of spans in memory: how much is held, what goes first, and that none outlives its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from lodestream.pipeline.search import SpanText
from lodestream.pipeline.serve import span_texts
from lodestream.pipeline.serve.span_texts import SpanTexts
from lodestream.storage.store import Snapshot


class Store:
    """Stands for snapshots: a text says which snapshot it was read of, and reads are counted."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def snapshot(self, number: int) -> Snapshot:
        return cast(Snapshot, _Numbered(number))

    def read(self, snapshot: Any, spans: Sequence[Mapping[str, Any]]) -> list[SpanText]:
        self.reads += [span["doc_id"] for span in spans]
        return [SpanText(title=span["doc_id"], text=f"{snapshot.number}" * span["char_end"]) for span in spans]


class _Numbered:
    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(span_texts, "read_span_texts", store.read)
    return store


def span(doc_id: str, length: int = 10) -> dict[str, Any]:
    return {"doc_id": doc_id, "char_start": 0, "char_end": length}


def test_what_was_read_is_not_read_again(store: Store) -> None:
    texts, snapshot = SpanTexts(10_000), store.snapshot(1)
    texts.advance(None, snapshot, None)
    first = texts.get(snapshot, [span("a"), span("b")])
    assert texts.get(snapshot, [span("b"), span("c"), span("a")]) == [
        first[1],
        texts.get(snapshot, [span("c")])[0],
        first[0],
    ]
    assert store.reads == ["a", "b", "c"]


def test_memory_stays_below_its_limit_and_the_least_recent_document_goes(store: Store) -> None:
    texts, snapshot = SpanTexts(10_000), store.snapshot(1)
    texts.advance(None, snapshot, None)
    for number in range(100):
        texts.get(snapshot, [span("kept"), span(f"{number}", 100 + number)])
        assert 0 < texts.num_bytes <= 10_000
    assert store.reads.count("kept") == 1
    texts.get(snapshot, [span("99", 199), span("0", 100)])
    assert store.reads[-1] == "0" and store.reads.count("99") == 1


def test_a_text_too_large_and_no_memory_hold_nothing(store: Store) -> None:
    for texts in (SpanTexts(10_000), SpanTexts(0)):
        snapshot = store.snapshot(1)
        texts.advance(None, snapshot, None)
        for _ in range(2):
            assert texts.get(snapshot, [span("a", 5000)])[0].text == "1" * 5000
        assert texts.num_bytes == 0
    assert store.reads == ["a"] * 4


def test_a_publish_takes_away_what_it_changed(store: Store) -> None:
    texts, first, second = SpanTexts(10_000), store.snapshot(1), store.snapshot(2)
    texts.advance(None, first, None)
    texts.get(first, [span("same"), span("edited")])
    held = texts.num_bytes
    texts.advance(first, second, ["edited", "never seen"])
    assert 0 < texts.num_bytes < held
    assert [text.text[0] for text in texts.get(second, [span("same"), span("edited")])] == ["1", "2"]


def test_a_request_of_the_snapshot_before_neither_gets_nor_leaves_anything(store: Store) -> None:
    texts, first, second = SpanTexts(10_000), store.snapshot(1), store.snapshot(2)
    texts.advance(None, first, None)
    texts.advance(first, second, ["edited"])
    assert texts.get(first, [span("edited")])[0].text[0] == "1"
    assert texts.num_bytes == 0
    assert texts.get(second, [span("edited")])[0].text[0] == "2"
    assert texts.get(first, [span("edited")])[0].text[0] == "1"


def test_without_knowing_what_changed_nothing_stays(store: Store) -> None:
    texts, first, second = SpanTexts(10_000), store.snapshot(1), store.snapshot(2)
    for before, changed in ((first, None), (store.snapshot(0), [])):
        texts.advance(None, first, None)
        texts.get(first, [span("a")])
        texts.advance(before, second, changed)
        assert texts.num_bytes == 0
