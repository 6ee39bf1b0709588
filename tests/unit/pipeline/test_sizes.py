"""Sizes in bytes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.pipeline.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("12B", 12),
        ("1kB", 1000),
        ("16MiB", 16 * 1024**2),
        ("2 GB", 2 * 1000**3),
        (" 1.5kib ", 1536),
        ("1TiB", 1024**4),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_parse(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1.MiB", "1e3", "1 parsec", "0.3B", "1.0001KiB", "9EiB", "٣", "8388608TiB"]
)
def test_refuse(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_round_trip(num_bytes: int) -> None:
    assert parse_size(format_size(num_bytes)) == num_bytes
