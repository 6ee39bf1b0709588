"""Batches by token budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.kernels.packing import pack, plan_batches


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 3000))
def test_every_segment_is_in_one_batch_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches(lengths, batch_tokens=batch_tokens)
    assert sorted(np.concatenate([*batches, np.zeros(0, int)]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= batch_tokens
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(order)


def test_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([3], batch_tokens=0)


def test_pack_lays_segments_end_to_end() -> None:
    batch = pack([np.array([5, 6, 7]), np.array([8]), np.array([9, 10])])
    assert batch.token_ids_T.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("segments", [[], [np.array([1]), np.zeros(0, int)]])
def test_pack_refuses_what_has_no_token(segments: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(segments)
