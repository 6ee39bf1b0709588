from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lodestream.storage.codec import decode_rows, encode_rows

VALUES = st.floats(min_value=-64, max_value=64, width=32)
SHAPES = st.tuples(st.integers(0, 40), st.integers(1, 24))
VECTORS = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES))


def encode_by_rule(row: np.ndarray) -> tuple[np.ndarray, np.float16]:
    """The rule of the module's docstring, value by value and slowly."""
    length = np.sqrt(np.einsum("d,d->", row, row))
    if length == 0:
        return np.zeros(len(row), np.int8), np.float16(0)
    unit = row / length
    wanted = np.abs(unit).max() / np.float32(127)
    scale = np.float16(0)
    while np.float32(scale) < wanted:
        scale = np.nextafter(scale, np.float16(np.inf)) if scale else np.float16(wanted * np.float32(0.99))
        scale = scale or np.nextafter(np.float16(0), np.float16(1))
    codes = [max(-127, min(127, round(float(value / np.float32(scale))))) for value in unit]
    return np.array(codes, np.int8), scale


@given(VECTORS)
def test_follows_the_rule(vectors: np.ndarray) -> None:
    codes, scales, _ = encode_rows(vectors)
    for row, row_codes, scale in zip(vectors, codes, scales, strict=True):
        wanted_codes, wanted_scale = encode_by_rule(row)
        # The two sum the squares in different orders, so a value may lie just on the other side of a half.
        assert abs(row_codes.astype(int) - wanted_codes.astype(int)).max() <= 1
        assert abs(float(scale) - float(wanted_scale)) <= float(np.spacing(wanted_scale))


@given(VECTORS)
def test_round_trip_error(vectors: np.ndarray) -> None:
    codes, scales, norms = encode_rows(vectors)
    decoded = decode_rows(codes, scales)
    assert decoded.dtype == np.float32 and decoded.shape == vectors.shape
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for row, length, got, scale, norm in zip(vectors, lengths, decoded, scales, norms, strict=True):
        assert norm == pytest.approx(length, rel=2**-10, abs=2**-24)
        if length >= 1e-15:
            assert np.abs(got - row / length).max() <= float(scale) / 2 + 1e-6


@given(VECTORS)
def test_no_code_is_clipped(vectors: np.ndarray) -> None:
    codes, scales, norms = encode_rows(vectors)
    assert codes.min(initial=0) >= -127
    largest = np.abs(codes.astype(int)).max(axis=1, initial=0)
    assert ((largest >= 126) | (norms == 0) | (scales == 0)).all()


@given(VECTORS, st.integers(0, 40))
def test_rows_are_independent(vectors: np.ndarray, cut: int) -> None:
    whole = encode_rows(vectors)
    parts = [encode_rows(vectors[:cut]), encode_rows(vectors[cut:])]
    for values, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(values, np.concatenate([first, second]))


def test_blocks_change_nothing() -> None:
    vectors = np.random.default_rng(7).normal(size=(1300, 24)).astype(np.float32)
    vectors[[0, 511, 512, 1299]] = 0
    codes, scales, norms = encode_rows(vectors)
    for index in (0, 1, 511, 512, 513, 1024, 1299):
        one = encode_rows(vectors[index : index + 1])
        np.testing.assert_array_equal(one[0][0], codes[index])
        assert (one[1][0], one[2][0]) == (scales[index], norms[index])


def test_zero_row() -> None:
    codes, scales, norms = encode_rows(np.zeros((2, 5), np.float32))
    assert not codes.any() and not scales.any() and not norms.any()
    assert not decode_rows(codes, scales).any()


def test_cosine_of_sentence_vectors() -> None:
    vectors = np.random.default_rng(3).normal(size=(2000, 384)).astype(np.float32)
    codes, scales, _ = encode_rows(vectors)
    decoded = decode_rows(codes, scales).astype(np.float64)
    cosine = (decoded * vectors).sum(1) / np.linalg.norm(decoded, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosine.min() >= 0.9999


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4, 3e38])
def test_refuses_what_cannot_be_kept(value: float) -> None:
    vectors = np.ones((3, 4), np.float32)
    vectors[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_rows(vectors)


def test_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="float32"):
        encode_rows(np.ones((3, 4)))  # type: ignore[arg-type]
