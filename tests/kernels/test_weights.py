"""Model folders in sentence-transformers' layout: what is honoured, and what is refused with a word on what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.errors import ModelError
from lodestream.kernels.weights import check_weights, load_tensors, read_model_folder
from tests.support.tiny_models import write_model

MODULE = "sentence_transformers.models."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the default model whose weights are a link to the real ones."""
    source, _ = find_model(DEFAULT_MODEL)
    copy = tmp_path / "model"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.safetensors", "*.onnx", "*.bin"))
    (copy / "model.safetensors").symlink_to(source / "model.safetensors")
    return copy


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


def modules(*names: str, pooling: str = "1_Pooling") -> list[dict[str, str]]:
    return [{"type": MODULE + name, "path": pooling if name == "Pooling" else ""} for name in names]


def test_default_model(folder: Path) -> None:
    model = read_model_folder(folder, expected_sha256=find_model(DEFAULT_MODEL)[1])
    assert (model.architecture, model.pooling, model.dim) == ("bert", "mean", 384)
    assert (model.max_seq_length, model.max_positions, model.query_prompt) == (256, 512, "")


def test_max_seq_length_never_exceeds_the_positions(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    assert read_model_folder(folder).max_seq_length == 128
    write(folder / "sentence_bert_config.json", {"max_seq_length": 4096})
    assert read_model_folder(folder).max_seq_length == 512
    (folder / "sentence_bert_config.json").unlink()
    assert read_model_folder(folder).max_seq_length == 512


@pytest.mark.parametrize(
    ("values", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling(folder: Path, values: dict[str, Any], pooling: str) -> None:
    write(folder / "1_Pooling" / "config.json", values)
    assert read_model_folder(folder).pooling == pooling


def test_pooling_lies_where_modules_say(folder: Path) -> None:
    write(folder / "modules.json", modules("Transformer", "Pooling", pooling="2_Other"))
    write(folder / "2_Other" / "config.json", {"pooling_mode_cls_token": True})
    assert read_model_folder(folder).pooling == "cls"


@pytest.mark.parametrize(
    "values",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode": "weightedmean"},
        {},
    ],
)
def test_other_pooling_is_refused(folder: Path, values: dict[str, Any]) -> None:
    write(folder / "1_Pooling" / "config.json", values)
    with pytest.raises(ModelError, match="pooling by .* is not supported"):
        read_model_folder(folder)


def test_normalising_may_be_there_or_not(folder: Path) -> None:
    for names in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")):
        write(folder / "modules.json", modules(*names))
        assert read_model_folder(folder).pooling == "mean"


def test_modules_that_change_vectors_are_refused(folder: Path) -> None:
    for names in (("Transformer", "Pooling", "LayerNorm"), ("Transformer", "WordWeights", "Pooling")):
        write(folder / "modules.json", modules(*names))
        with pytest.raises(ModelError, match="the module (LayerNorm|WordWeights) after the encoder"):
            read_model_folder(folder)
    for names in (("Transformer", "Pooling", "Normalize", "Dense"), ("Pooling", "Transformer")):
        write(folder / "modules.json", modules(*names))
        with pytest.raises(ModelError, match="are not supported"):
            read_model_folder(folder)
    write(folder / "modules.json", [{"type": f"{MODULE}Transformer", "path": "0_Transformer"}])
    with pytest.raises(ModelError, match="0_Transformer"):
        read_model_folder(folder)


def test_prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    write(path, {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None})
    found = read_model_folder(folder)
    assert (found.query_prompt, found.document_prompt) == ("query: ", "")
    write(path, {"prompts": {"passage": "passage: ", "corpus": "no: "}})
    found = read_model_folder(folder)
    assert (found.query_prompt, found.document_prompt) == ("", "passage: ")
    write(path, {"prompts": {"x": "say: "}, "default_prompt_name": "x"})
    found = read_model_folder(folder)
    assert (found.query_prompt, found.document_prompt) == ("say: ", "say: ")
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ModelError, match="include_prompt"):
        read_model_folder(folder)


def dense(path: Path, num_out: int, num_in: int, **values: Any) -> None:
    write(path / "config.json", {"in_features": num_in, "out_features": num_out, "bias": False, **values})
    save_file({"linear.weight": torch.zeros(num_out, num_in)}, path / "model.safetensors")


def test_linears_after_pooling(folder: Path) -> None:
    before = read_model_folder(folder)
    names = [*modules("Transformer", "Pooling", "Dense", "Dense", "Normalize")]
    names[2]["path"], names[3]["path"] = "2_Dense", "3_Dense"
    write(folder / "modules.json", names)
    with pytest.raises(ModelError, match=r"2_Dense has no config\.json"):
        read_model_folder(folder)
    dense(folder / "2_Dense", 96, 384, activation_function="torch.nn.modules.linear.Identity")
    dense(folder / "3_Dense", 64, 96)
    found = read_model_folder(folder)
    assert found.dim == 64 and found.description.dim == 384
    assert [(head.num_in, head.num_out, head.has_bias) for head in found.heads] == [(384, 96, False), (96, 64, False)]
    # Their weights and they themselves are part of what vectors depend on.
    assert found.weights_sha256 != before.weights_sha256
    assert found.description_sha256 != before.description_sha256
    dense(folder / "2_Dense", 96, 384, activation_function="torch.nn.modules.activation.Tanh")
    with pytest.raises(ModelError, match="Tanh"):
        read_model_folder(folder)
    dense(folder / "2_Dense", 90, 384)
    with pytest.raises(ModelError, match="96 columns go in, but 90 come"):
        read_model_folder(folder)
    dense(folder / "2_Dense", 96, 384)
    (folder / "3_Dense" / "model.safetensors").unlink()
    (folder / "3_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="run code"):
        read_model_folder(folder)


def test_lowering_is_refused(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True})
    with pytest.raises(ModelError, match="do_lower_case"):
        read_model_folder(folder)


def test_shards(tmp_path: Path) -> None:
    write_model(tmp_path / "whole", "modernbert", "published")
    write_model(tmp_path / "shards", "modernbert", "published", num_shards=3)
    whole, shards = (read_model_folder(tmp_path / name) for name in ("whole", "shards"))
    assert whole.weights_sha256 != shards.weights_sha256 and len(shards.weight_files) == 3
    assert {n: t.tolist() for n, t in load_tensors(whole).items()} == {
        n: t.tolist() for n, t in load_tensors(shards).items()
    }
    (tmp_path / "shards" / shards.weight_files[1]).unlink()
    with pytest.raises(ModelError, match=r"has no model-00002-of-00003\.safetensors, which model\.safetensors\.index"):
        read_model_folder(tmp_path / "shards")
    write(tmp_path / "shards" / "model.safetensors.index.json", {"weight_map": {"a": "../whole/model.safetensors"}})
    with pytest.raises(ModelError, match="which model.safetensors.index"):
        read_model_folder(tmp_path / "shards")


def test_wrong_hash_is_refused(folder: Path) -> None:
    stated = read_model_folder(folder, expected_sha256="0000")
    for use in (check_weights, load_tensors):
        with pytest.raises(ModelError, match="expected 0000"):
            use(stated)


def test_right_hash_is_looked_at_once(folder: Path) -> None:
    found = read_model_folder(folder)
    assert found.is_hashed and check_weights(found) is found
    stated = read_model_folder(folder, expected_sha256=found.weights_sha256)
    assert not stated.is_hashed and check_weights(stated) == found


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        read_model_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which run code when they are opened"):
        read_model_folder(folder)


def test_torn_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()[:1000]
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(ModelError, match="torn"):
        load_tensors(read_model_folder(folder))


@pytest.mark.parametrize("name", ["config.json", "modules.json", "config_sentence_transformers.json"])
def test_unreadable_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{ not json")
    with pytest.raises(ModelError, match=name):
        read_model_folder(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "electra"}, "electra"),
        ({"model_type": "mpnet"}, "adds a bias by relative position"),
        ({"model_type": None}, "without a name"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type = 'alibi' is not supported"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": "wide"}, "no whole number"),
    ],
)
def test_other_architecture_is_refused(folder: Path, values: dict[str, Any], words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | values)
    with pytest.raises(ModelError, match=words) as caught:
        read_model_folder(folder)
    assert caught.value.hint
