"""Which segments are attended sparsely: the gate, the density of the text, and what of it a fingerprint holds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lodestream.actors.attention import LEVELS, AttentionPolicy, make_policy, read_gate, tag_plan
from lodestream.kernels.attention.budget import SegmentPlan
from lodestream.kernels.attention.gate import GateTable

GATE = GateTable(engine="torch-cpu fp32", head_dim=32, points=((2048, 0.5), (8192, 0.8)))
NUM_TOKENS = 8998


def make_auto(quality: str = "medium", gate: GateTable = GATE) -> AttentionPolicy:
    policy = make_policy("auto", quality, gate, engine=gate.engine, head_dim=gate.head_dim)  # type: ignore[arg-type]
    assert policy is not None
    return policy


def plan(policy: AttentionPolicy, density: NDArray[np.float32], num_tokens: int = NUM_TOKENS) -> SegmentPlan | None:
    bounds = np.linspace(0, num_tokens, len(density) + 1).astype(np.int32)
    tokens = np.stack([bounds[:-1], bounds[1:]], axis=1)
    return policy.plan(density, tokens, segment_tokens=(0, num_tokens), num_around=(1, 1))


def test_long_segments_are_sparse_where_the_gate_lets_them() -> None:
    low = np.zeros(20, np.float32)
    assert plan(make_auto(), low, 1000) is None
    found = plan(make_auto(), low)
    assert found is not None and found.ladder.shares == (0.4, 0.6, 1.0)
    # Between 2,048 and 8,192 tokens the gate lets no more than a half through.
    shorter = plan(make_auto(), low, 4000)
    assert shorter is not None and shorter.ladder.shares == (0.4, 1.0)
    assert plan(make_auto("high"), low, 4000) is None
    closed = GateTable(engine="e", head_dim=32, points=((2048, 0.0),))
    assert make_auto(gate=closed).min_tokens is None and plan(make_auto(gate=closed), low) is None


def test_dense_text_is_exact_and_too_much_of_it_makes_the_segment_dense() -> None:
    density = np.zeros(20, np.float32)
    density[:4] = 1
    found = plan(make_auto(), density)
    assert found is not None and all(found.exact_rows[:14]) and not any(found.exact_rows[16:])
    assert found.ladder.shares[0] == pytest.approx(0.4 + 0.6 * found.exact_rows.count(True) / len(found.exact_rows))
    density[:] = 1
    assert plan(make_auto(), density) is None
    # On the lowest level no text is exact.
    assert plan(make_auto("low"), density) is not None


def test_a_fingerprint_holds_what_is_exact_and_nothing_of_dense_segments() -> None:
    density = np.random.default_rng(0).uniform(0.1, 0.9, 20).astype(np.float32)
    tag = tag_plan(plan(make_auto(), density))
    assert tag and tag == tag_plan(plan(make_auto(), density + np.float32(0.02)))
    other = density.copy()
    other[3] = 0.99
    assert tag != tag_plan(plan(make_auto(), other))
    assert tag != tag_plan(plan(make_auto("low"), density))
    assert tag_plan(None) == b""


def test_the_gate_is_read_back_from_the_recipe() -> None:
    recipe = {"attention": make_auto().as_dict()}
    assert read_gate(recipe, engine="torch-cpu fp32", head_dim=32) == GATE
    assert read_gate(recipe, engine="torch-cpu bf16", head_dim=32) is None
    assert read_gate({}, engine="torch-cpu fp32", head_dim=32) is None


def test_settings_that_need_no_measurement() -> None:
    assert make_policy("dense", "high", GATE, engine=GATE.engine, head_dim=32) is None
    assert make_policy("auto", "high", None, engine="unknown", head_dim=32) is None
    forced = make_policy("sparse", "high", None, engine="unknown", head_dim=32)
    assert forced is not None and plan(forced, np.zeros(4, np.float32), 400) is not None
    assert plan(forced, np.zeros(4, np.float32), 100) is None


def test_levels_are_in_order() -> None:
    low, medium, high = (LEVELS[name] for name in ("low", "medium", "high"))
    assert low.shares[0] < medium.shares[0] < high.shares[0]
    assert low.bound > medium.bound > high.bound
    assert low.exact_density > medium.exact_density > high.exact_density
