"""The codec of four bits: its error, its size, and vectors at the edges of what it takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.storage.codec import decode_rows, encode_rows
from lodestream.storage.codec_int4 import GROUP, as_int8, num_groups, pack_rows, unpack_rows


def make_units(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num_rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_cosine_and_size_are_those_of_the_table() -> None:
    units = make_units(2000, 384)
    packed, scales = pack_rows(units)
    restored = unpack_rows(packed, scales, 384)
    cosines = (restored * units).sum(axis=1) / np.linalg.norm(restored, axis=1)
    assert cosines.mean() > 0.993
    assert cosines.min() > 0.985
    assert (packed.nbytes + scales.nbytes) / units.nbytes < 0.134


@given(dim=st.integers(1, 200), num_rows=st.integers(0, 5), seed=st.integers(0, 1000))
def test_values_within_the_clip_are_kept_within_half_a_step(dim: int, num_rows: int, seed: int) -> None:
    units = make_units(num_rows, dim, seed)
    packed, scales = pack_rows(units)
    assert packed.shape == (num_rows, (dim + 1) // 2)
    assert scales.shape == (num_rows, num_groups(dim))
    steps = np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, :dim]
    kept = np.clip(units, -7 * steps, 7 * steps)
    assert (np.abs(unpack_rows(packed, scales, dim) - kept) <= steps / 2 + 1e-6).all()


@pytest.mark.parametrize("dim", [1, 8, 65])
def test_zeros_stay_zeros(dim: int) -> None:
    packed, scales = pack_rows(np.zeros((2, dim), np.float32))
    codes, row_scales = as_int8(packed, scales, dim)
    assert not codes.any()
    assert not row_scales.any()


def test_as_int8_gives_codes_of_the_stored_kind() -> None:
    codes, scales, _ = encode_rows(make_units(100, 384))
    stored = decode_rows(codes, scales)
    copied = decode_rows(*as_int8(*pack_rows(stored), 384))
    cosines = (stored * copied).sum(axis=1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(copied, axis=1)
    assert cosines.min() > 0.985
