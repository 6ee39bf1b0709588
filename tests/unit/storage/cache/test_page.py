"""Pages: what is written is what is read, on a tenth of the bytes less, and nothing else is ever taken for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodestream.storage.cache.compact_rows import PageCodec, can_shrink
from lodestream.storage.cache.page import DamagedPage, ForeignPage, Page, PageEntry, encode_page, write_page
from lodestream.storage.codec import decode_rows
from tests.support.cache_entries import make_entry, make_key
from tests.support.store_rows import DIM


def make_items(num_documents: int, *, dim: int = DIM, num_rows: int = 5) -> list[PageEntry]:
    return [
        PageEntry(
            kind=granularity,
            key=make_key(f"doc {number}", granularity),
            entry=make_entry(f"doc {number}", num_rows=num_rows, granularity=granularity, dim=dim),
            made_at_s=1_800_000_000 + number,
        )
        for number in range(num_documents)
        for granularity in ("sentence", "document")
    ]


def write(folder: Path, items: list[PageEntry], *, dim: int = DIM, codec: PageCodec = "int8") -> Path:
    return write_page(folder, "page", encode_page(items, dim=dim, codec=codec))


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=12), num_tokens=st.integers(0, 1 << 31))
def test_entries_come_back_bit_by_bit(
    counts: list[int], num_tokens: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    items = [
        PageEntry(
            kind="sentence",
            key=make_key(str(number)),
            entry=dataclasses.replace(make_entry(f"é {number}", num_rows=num_rows), num_tokens=num_tokens),
            made_at_s=number,
        )
        for number, num_rows in enumerate(counts)
    ]
    page = Page.open(write(tmp_path_factory.mktemp("page"), items), dim=DIM, codec="int8")
    assert page.keys == [item.key for item in items]
    for number, item in enumerate(items):
        found = page.read(number)
        assert found.entry.rows.equals(item.entry.rows)
        assert dataclasses.replace(found, entry=item.entry) == item
        assert found.entry.num_tokens == num_tokens


@pytest.mark.parametrize(("codec", "share"), [("int8", 0.30), ("int4", 0.18)])
def test_a_page_takes_that_share_of_the_raw_vectors(tmp_path: Path, codec: PageCodec, share: float) -> None:
    items = make_items(200, dim=384)
    path = write(tmp_path, items, dim=384, codec=codec)
    raw = sum(item.entry.rows.num_rows for item in items) * 384 * 4
    assert path.stat().st_size / raw <= share


def test_four_bits_lose_a_little_and_say_so(tmp_path: Path) -> None:
    items = make_items(20, dim=384)
    page = Page.open(write(tmp_path, items, dim=384, codec="int4"), dim=384, codec="int4")
    for number, item in enumerate(items):
        found = page.read(number).entry
        assert found.is_lossy
        kept, given_rows = (
            decode_rows(
                rows.column("codes").flatten().to_numpy().reshape(rows.num_rows, -1),
                rows.column("scale").to_numpy(zero_copy_only=False),
            )
            for rows in (found.rows, item.entry.rows)
        )
        lengths = np.linalg.norm(kept, axis=1) * np.linalg.norm(given_rows, axis=1)
        assert ((kept * given_rows).sum(axis=1) / lengths).min() > 0.98
        others = [name for name in found.rows.schema.names if name not in ("codes", "scale")]
        assert found.rows.select(others).equals(item.entry.rows.select(others))


def test_any_reader_of_arrow_opens_a_page(tmp_path: Path) -> None:
    path = write(tmp_path, make_items(3))
    assert pa.ipc.open_stream(path.read_bytes()).read_all().num_rows == 3 * 6


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_page_that_is_cut_short_is_damaged(tmp_path: Path, cut: float) -> None:
    path = write(tmp_path, make_items(5))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(DamagedPage):
        Page.open(path, dim=DIM, codec="int8")


def test_no_altered_byte_is_ever_taken_for_what_was_written(tmp_path: Path) -> None:
    items = make_items(4)
    path = write(tmp_path, items)
    data = path.read_bytes()
    noticed = 0
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            page = Page.open(path, dim=DIM, codec="int8")
            for number, item in enumerate(items):
                assert page.read(number).entry.rows.equals(item.entry.rows)
        except DamagedPage:
            noticed += 1
    assert noticed > len(data) / 7 / 2  # the others fell on the schema, which is not read


def test_a_page_of_another_width_or_codec_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, make_items(2))
    for dim, codec in ((DIM + 1, "int8"), (DIM, "int4")):
        with pytest.raises(ForeignPage):
            Page.open(path, dim=dim, codec=codec)  # type: ignore[arg-type]


def test_rows_that_would_not_come_back_are_refused() -> None:
    entry = make_entry("a.md")
    assert can_shrink(entry)
    assert not can_shrink(dataclasses.replace(entry, source="another"))
    mixed = pa.Table.from_batches([entry.rows, make_entry("b.md").rows]).combine_chunks().to_batches()[0]
    assert not can_shrink(dataclasses.replace(entry, rows=mixed))
    column = entry.rows.schema.get_field_index("kind")
    strange = entry.rows.set_column(column, entry.rows.schema.field(column), pa.array(["rune"] * entry.rows.num_rows))
    assert not can_shrink(dataclasses.replace(entry, rows=strange))
