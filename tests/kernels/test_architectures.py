"""Every architecture: the states of transformers, from files old and new, the same bits whatever shares the batch, and
clear words for what is not supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lodestream.errors import ModelError
from lodestream.kernels import linear
from lodestream.kernels.encoder import block, load_encoder
from lodestream.kernels.encoder import encoder as encoder_module
from lodestream.kernels.encoder.block_attention import BlockAttention
from lodestream.kernels.encoder.tensors import ModelTensors
from lodestream.kernels.packing import pack
from lodestream.kernels.precision import native_precision
from lodestream.kernels.weights import read_model_folder
from tests.support.tiny_configs import CONFIGS, Form
from tests.support.tiny_models import LENGTHS, NAMES, draw_tensors, draw_token_ids, write_model, write_tensors

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
    attend = BlockAttention(LENGTHS, num_rows=linear.plan_rows(sum(LENGTHS)))
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


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("modernbert", {"hidden_activation": "silu"}, "hidden_activation"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("nomic", {"num_experts": 8}, "num_experts = 8"),
        ("nomic", {"prenorm": True}, "prenorm = True"),
        ("nomic", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction"),
        ("gte", {"rope_scaling": {"type": "ntk", "factor": 2, "mixed_b": 0.6}}, "mixed_b"),
        ("gte", {"logn_attention_scale": True}, "logn_attention_scale"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("gemma", {"use_bidirectional_attention": False}, "use_bidirectional_attention"),
        ("gemma", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ],
)
def test_variants_are_refused_by_their_key(tmp_path: Path, name: str, values: dict[str, Any], words: str) -> None:
    write_model(tmp_path, name, "published")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[name]["published"], **values}))
    with pytest.raises(ModelError, match=words) as caught:
        read_model_folder(tmp_path)
    assert "docs/encoder.md" in caught.value.hint


def test_nomic_reads_no_further_than_it_is_unscaled(tmp_path: Path) -> None:
    write_model(tmp_path, "nomic", "published")
    config = {**CONFIGS["nomic"]["published"], "n_positions": 8192}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_model_folder(tmp_path).max_positions == 8192
    (tmp_path / "config.json").write_text(json.dumps({**config, "rotary_scaling_factor": 2}))
    assert read_model_folder(tmp_path).max_positions == 2048


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "no tensor for layers.1.mlp.gate.weight"),
        ("shape", r"layers.1.mlp.gate_proj.weight is \[47, 32\], by config.json it is \[48, 32\]"),
        ("bias", "config.json says nothing of: layers.0.self_attn.q_proj.bias"),
        ("layer", "says nothing of: layers.3.input_layernorm.weight"),
        ("unknown", "says nothing of: layers.0.self_attn.sinks"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: str, words: str) -> None:
    write_model(tmp_path, "qwen3", "renamed")
    tensors = draw_tensors("qwen3")
    gate = "layers.1.mlp.gate_proj.weight"
    if change == "missing":
        del tensors[gate]
    elif change == "shape":
        tensors[gate] = tensors[gate][1:]
    else:
        extra = {"bias": "layers.0.self_attn.q_proj.bias", "layer": "layers.3.input_layernorm.weight"}
        tensors[extra.get(change, "layers.0.self_attn.sinks")] = np.zeros(32, np.float32)
    write_tensors(tmp_path, tensors)
    with pytest.raises(ModelError, match=words):
        load_encoder(tmp_path, precision="fp32")


def test_stored_precision_is_kept(tmp_path: Path) -> None:
    """Weights in bfloat16 or float16 give the states of the same values in float32."""
    tensors = {name: torch.from_numpy(tensor) for name, tensor in draw_tensors("gemma").items()}
    for dtype in (torch.bfloat16, torch.float16):
        states = []
        for stored in (dtype, torch.float32):
            write_model(tmp_path, "gemma", "renamed")
            save_file({n: t.to(dtype).to(stored) for n, t in tensors.items()}, tmp_path / "model.safetensors")
            states.append(encode_all(load_encoder(tmp_path, precision="fp32")))
        assert torch.equal(*states)


class RandomTensors(ModelTensors):
    """Whatever is asked for, at random: the weights of a model of real widths."""

    def __contains__(self, name: str) -> bool:
        return False

    def take(self, name: str, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(name) + shape[0])
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    def close(self) -> None:
        """Nobody asks for what lies in the file."""


REAL_WIDTHS: dict[str, dict[str, int]] = {
    "xlm-roberta": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "modernbert": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152, "local_attention": 128},
    "nomic": {"n_embd": 768, "n_head": 12, "n_inner": 3072},
    "gte": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "qwen3": {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    "gemma": {
        "hidden_size": 768,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 1152,
        "sliding_window": 512,
    },
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(REAL_WIDTHS))
def test_bits_do_not_depend_on_the_batch_at_real_widths(
    tmp_path: Path, name: str, precision: Any, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long sums are ordered by shape, and blocks of windows are only met by long segments."""
    write_model(tmp_path, name, "published")
    num_layers = 2 if name == "modernbert" else 1
    sizes = {
        "n_positions": 1024,
        "max_position_embeddings": 1024,
        "num_hidden_layers": num_layers,
        "n_layer": num_layers,
    }
    config = {**CONFIGS[name]["published"], **REAL_WIDTHS[name], **sizes}
    config.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("lodestream.kernels.encoder.encoder.ModelTensors", RandomTensors)
    encoder = load_encoder(tmp_path, precision=precision)
    segments = [draw_token_ids(length) for length in (3, 64, 127, 128, 200, 300, 517)]
    alone = [encoder.encode(pack([segment])) for segment in segments]
    for num_threads, order in ((2, [5, 1, 6, 3]), (3, [3, 4, 0, 1, 2, 5, 6, 4])):
        torch.set_num_threads(num_threads)
        parts = encoder.encode(pack([segments[i] for i in order])).split([len(segments[i]) for i in order])
        for i, part in zip(order, parts, strict=True):
            assert bool(torch.isfinite(part).all())
            assert torch.equal(part, alone[i]), (len(segments[i]), num_threads)
