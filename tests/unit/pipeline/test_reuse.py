"""Stored segments are found, however many questions that takes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.prepared import spans_from_table
from lodestream.actors.texts import make_documents
from lodestream.pipeline import reuse
from tests.support.workspace import short_topics

MAX_ASKED = 3


class StoredRows:
    """The rows of a table by fingerprint, as a snapshot gives them."""

    def __init__(self, rows: pa.Table) -> None:
        self.asked: list[int] = []
        self._rows = rows.filter(pc.is_in(rows.column("granularity"), pa.array(["paragraph", "sentence"])))

    def find_segments(self, fingerprints: Sequence[bytes]) -> pa.Table:
        self.asked.append(len(fingerprints))
        wanted = pa.array(fingerprints, self._rows.schema.field("fingerprint").type)
        return self._rows.filter(pc.is_in(self._rows.column("fingerprint"), wanted))


def test_many_segments_are_asked_for_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    featurizer = Featurizer()
    text = "\n\n".join(short_topics(3).values())
    prepared = featurizer.prepare(make_documents([text], "rst", doc_ids=["a"]))
    spans = list(spans_from_table(prepared))
    stored = featurizer.encode(prepared, {}, run_id="").features
    at_once = reuse.find_known([StoredRows(stored)], spans)
    assert at_once.keys() == set(spans[0].fingerprints())
    monkeypatch.setattr(reuse, "MAX_ASKED", MAX_ASKED)
    index, later = StoredRows(stored), StoredRows(stored)
    in_parts = reuse.find_known([index, later], spans)
    assert len(index.asked) > 3 and max(index.asked) <= MAX_ASKED and not later.asked
    assert in_parts.keys() == at_once.keys()
    assert all((in_parts[name].codes == at_once[name].codes).all() for name in at_once)
