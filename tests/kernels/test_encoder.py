"""The CPU encoder: the same bits whatever shares a batch, and the same states as a plain float64 computation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.errors import ConfigError, ModelError
from lodestream.kernels.encoder import Encoder, load_encoder
from lodestream.kernels.linear import plan_rows
from lodestream.kernels.packing import pack
from lodestream.kernels.precision import PRODUCTS_FROM, native_precision
from tests.support.long_model import write_long_bert

LENGTHS = (3, 4, 15, 16, 17, 31, 40, 63, 64, 127, 255, 511, 512)
ROW_SIZES = sorted({plan_rows(n) for n in range(1, 520)})
PRECISIONS = ["fp32", "bf16"]
needs_bf16 = pytest.mark.skipif(native_precision() != "bf16", reason="needs a processor with avx512_bf16 or amx_bf16")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=needs_bf16)])
def minilm(request: pytest.FixtureRequest) -> Encoder:
    folder, sha256 = find_model(DEFAULT_MODEL)
    return load_encoder(folder, precision=request.param, expected_sha256=sha256)


def make_segments(lengths: tuple[int, ...], seed: int = 0) -> list[NDArray[np.int32]]:
    random = np.random.default_rng(seed)
    return [np.concatenate([[101], random.integers(1000, 30000, n - 2), [102]]).astype(np.int32) for n in lengths]


def encode_each(encoder: Encoder, segments: list[NDArray[np.int32]], order: list[int]) -> dict[int, torch.Tensor]:
    states = encoder.encode(pack([segments[i] for i in order]))
    ends = np.cumsum([len(segments[i]) for i in order]).tolist()
    return {i: states[end - len(segments[i]) : end] for i, end in zip(order, ends, strict=True)}


def test_states_are_the_same_bits_whatever_shares_the_batch(minilm: Encoder, two_threads: None) -> None:
    segments = make_segments(LENGTHS)
    alone = {i: minilm.encode(pack([segment])) for i, segment in enumerate(segments)}
    random = np.random.default_rng(1)
    for trial in range(6):
        torch.set_num_threads(1 + trial % 2)
        order = random.permutation(len(segments))[: random.integers(2, len(segments) + 1)].tolist()
        for i, states in encode_each(minilm, segments, order).items():
            assert torch.equal(states, alone[i]), (len(segments[i]), order)


def test_short_texts_are_the_same_bits_in_batches_of_every_size(minilm: Encoder, two_threads: None) -> None:
    """A query alone runs over a few rows only, see kernels/linear.py."""
    query, *others = make_segments((9, 509, *(rows - 9 for rows in ROW_SIZES[1:-1])))
    wanted = minilm.encode(pack([query, others[0]]))[:9]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(minilm.encode(pack([query])), wanted)
        for other in others[1:]:
            assert torch.equal(minilm.encode(pack([query, other]))[:9], wanted), (len(other), threads)


@needs_bf16
def test_bf16_is_close_to_fp32() -> None:
    folder, _ = find_model(DEFAULT_MODEL)
    segments = make_segments(LENGTHS)
    means = []
    for precision in PRECISIONS:
        encoder = load_encoder(folder, precision=precision)  # type: ignore[arg-type]
        found = encode_each(encoder, segments, list(range(len(segments))))
        means.append(torch.stack([found[i].mean(0) for i in range(len(segments))]))
    assert float(torch.cosine_similarity(*means).min()) >= 0.9999


def write_tiny_bert(folder: Path, *, activation: str = "gelu", old_names: bool = True) -> dict[str, torch.Tensor]:
    """A BERT with random weights: 2 layers, 32 wide, 4 heads. Tensor names as they were published once, or as now."""
    torch.manual_seed(0)
    config = {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 48,
        "hidden_act": activation,
        "layer_norm_eps": 1e-12,
    }
    shapes = {"embeddings.word_embeddings.weight": (50, 32), "embeddings.position_embeddings.weight": (48, 32)}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, 32)}
    norms = ["embeddings.LayerNorm"]
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{part}.weight": (32, 32), f"{layer}.{part}.bias": (32,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (64, 32), f"{layer}.intermediate.dense.bias": (64,)}
        shapes |= {f"{layer}.output.dense.weight": (32, 64), f"{layer}.output.dense.bias": (32,)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    tensors = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    for norm in norms:
        tensors |= {f"{norm}.weight": 1 + torch.randn(32) * 0.1, f"{norm}.bias": torch.randn(32) * 0.1}
    names = {
        name: f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for name in tensors
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({names[n] if old_names else n: t for n, t in tensors.items()}, folder / "model.safetensors")
    return tensors


def encode_plainly(tensors: dict[str, torch.Tensor], ids: NDArray[np.int32]) -> torch.Tensor:
    """float64 [T, C]: the same model written down without packing, grouping or fused operators."""
    t = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-12)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][torch.from_numpy(ids).long()]
    x = x + t["embeddings.position_embeddings.weight"][: len(ids)] + t["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").view(len(ids), 4, 8).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), -1) @ v
        attended = linear(mixed.transpose(0, 1).reshape(len(ids), 32), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


@pytest.mark.parametrize("old_names", [True, False])
def test_equals_a_plain_float64_computation(tmp_path: Path, old_names: bool) -> None:
    tensors = write_tiny_bert(tmp_path / "model", old_names=old_names)
    encoder = load_encoder(tmp_path / "model", precision="fp32")
    random = np.random.default_rng(0)
    segments = [random.integers(0, 50, n).astype(np.int32) for n in (1, 2, 7, 16, 33, 48)]
    for i, states in encode_each(encoder, segments, [3, 0, 5, 1, 4, 2]).items():
        # Some hundred additions of values near 1 in float32.
        assert float((states.double() - encode_plainly(tensors, segments[i])).abs().max()) < 2e-5


def test_fallback_without_packed_linears_is_as_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = write_tiny_bert(tmp_path / "model")
    monkeypatch.setattr("lodestream.kernels.linear._is_right", lambda *_: False)
    encoder = load_encoder(tmp_path / "model", precision="fp32")
    ids = np.arange(20, dtype=np.int32)
    assert float((encoder.encode(pack([ids])).double() - encode_plainly(tensors, ids)).abs().max()) < 2e-5


def test_too_long_segment_is_refused(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path / "model")
    encoder = load_encoder(tmp_path / "model", precision="fp32")
    with pytest.raises(ValueError, match="49 tokens, but the model reads 48"):
        encoder.encode(pack([np.ones(49, np.int32)]))


def test_other_activation_is_refused(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path / "model", activation="relu")
    with pytest.raises(ModelError, match="relu"):
        load_encoder(tmp_path / "model", precision="fp32")


def test_bf16_without_the_hardware_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lodestream.kernels.encoder.api.native_precision", lambda: "fp32")
    with pytest.raises(ConfigError, match="bf16"):
        load_encoder(find_model(DEFAULT_MODEL)[0], precision="bf16")


@needs_bf16
def test_long_segments_are_the_same_bits_whatever_shares_the_batch(tmp_path: Path, two_threads: None) -> None:
    """From PRODUCTS_FROM tokens on bfloat16 attention takes another form, which is held to the same."""
    folder = write_long_bert(tmp_path / "long", max_tokens=2100)
    encoder, exact = load_encoder(folder, precision="bf16"), load_encoder(folder, precision="fp32")
    segments = make_segments((PRODUCTS_FROM - 1, PRODUCTS_FROM, PRODUCTS_FROM + 1, 1500, 2100, 17))
    alone = {i: encoder.encode(pack([segment])) for i, segment in enumerate(segments)}
    for threads, order in ((1, [5, 1, 2, 0]), (2, [4, 3, 2, 1, 0, 5]), (3, [2, 1, 3, 4])):
        torch.set_num_threads(threads)
        for i, states in encode_each(encoder, segments, order).items():
            assert torch.equal(states, alone[i]), (len(segments[i]), order)
    for i, segment in enumerate(segments):
        wanted = exact.encode(pack([segment])).mean(0)
        assert float(torch.cosine_similarity(alone[i].mean(0), wanted, dim=0)) >= 0.9999
