"""Every architecture: the states of transformers, from files old and new, the same bits whatever shares the batch, and
clear words for what is not supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lodestream.kernels import linear
from lodestream.kernels.encoder import block, load_encoder
from lodestream.kernels.encoder import encoder as encoder_module
from lodestream.kernels.encoder.block_attention import BlockAttention
from lodestream.kernels.packing import pack
from lodestream.kernels.precision import native_precision
from tests.support.tiny_configs import Form
from tests.support.tiny_models import (
    LENGTHS,
    NAMES,
    draw_token_ids,
    write_model,
)

needs_bf16 = pytest.mark.skipif(native_precision() != "bf16", reason="needs a processor with avx512_bf16 or amx_bf16")
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16)]
STATES = Path(__file__).parents[1] / "support" / "architectures"


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read_states(name: str) -> torch.Tensor:
    """float32 [T, C]: what transformers gave, see tests/bench/make_architecture_states.py."""
    with np.load(STATES / f"{name}.npz") as file:
        return torch.from_numpy(file["states"])


def encode_all(encoder: Any, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    states: torch.Tensor = encoder.encode(pack([draw_token_ids(length) for length in lengths]))
    return states


@pytest.mark.parametrize("form", ["published", "renamed"])
@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_transformers(tmp_path: Path, name: str, form: Form) -> None:
    write_model(tmp_path, name, form)
    found, wanted = encode_all(load_encoder(tmp_path, precision="fp32")), read_states(name)
    assert found.shape == wanted.shape == (sum(LENGTHS), 32)
    assert float(torch.cosine_similarity(found, wanted).min()) >= 0.99999
    # Some hundred float32 additions in another order; GELU by tanh in the place of erf is sixty times that.
    assert float((found - wanted).abs().max()) <= 3e-5


@pytest.mark.parametrize("name", NAMES)
def test_states_are_the_same_in_the_form_for_gpus(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined halves of the MLP, plain linears, attention by the block operator: all of it but the device."""

    def read_joined(*arguments: Any, joins_halves: bool, **options: Any) -> Any:
        assert not joins_halves, "on a CPU"
        return block.read_mlp(*arguments, joins_halves=True, **options)

    monkeypatch.setattr(encoder_module, "read_mlp", read_joined)
    monkeypatch.setattr(linear, "_is_right", lambda *shape: False)
    write_model(tmp_path, name, "published")
    encoder: Any = load_encoder(tmp_path, precision="fp32")
    attend = BlockAttention(LENGTHS, num_rows=encoder_module.plan_rows(sum(LENGTHS)))
    found = encoder.encode(pack([draw_token_ids(length) for length in LENGTHS]), attend=attend)
    assert float((found - read_states(name)).abs().max()) <= 3e-5


@needs_bf16
@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_close(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, name, "renamed")
    means = [
        torch.stack([part.mean(0) for part in states.split(list(LENGTHS))])
        for states in (encode_all(load_encoder(tmp_path, precision="bf16")), read_states(name))
    ]
    # Models of 32 columns average fewer roundings than real ones.
    assert float(torch.cosine_similarity(*means).min()) >= 0.9995


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_the_batch(tmp_path: Path, name: str, precision: Any, two_threads: None) -> None:
    write_model(tmp_path, name, "renamed")
    encoder = load_encoder(tmp_path, precision=precision)
    lengths = (1, 2, 7, 15, 16, 17, 33, 64, 78, 90)
    segments = [draw_token_ids(length) for length in lengths]
    alone = [encoder.encode(pack([segment])) for segment in segments]
    random = np.random.default_rng(0)
    for trial in range(6):
        torch.set_num_threads(1 + trial % 3)
        order = random.permutation(np.repeat(np.arange(len(lengths)), 1 + trial * 2)).tolist()
        parts = encoder.encode(pack([segments[i] for i in order])).split([lengths[i] for i in order])
        for i, part in zip(order, parts, strict=True):
            assert torch.equal(part, alone[i]), (lengths[i], trial)
