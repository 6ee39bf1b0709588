"""Model folders in sentence-transformers' layout: what is honoured, and what is refused with a word on what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lodestream.actors.models import DEFAULT_MODEL, find_model
from lodestream.errors import ModelError
from lodestream.kernels.weights import check_weights, load_tensors, read_model_folder

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
        {"pooling_mode": "lasttoken"},
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
    write(folder / "modules.json", modules("Transformer", "Pooling", "Dense"))
    with pytest.raises(ModelError, match="module Dense"):
        read_model_folder(folder)
    write(folder / "modules.json", [{"type": f"{MODULE}Transformer", "path": "0_Transformer"}])
    with pytest.raises(ModelError, match="0_Transformer"):
        read_model_folder(folder)


def test_prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    write(path, {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None})
    assert read_model_folder(folder).query_prompt == "query: "
    for wanted in ({"prompts": {"passage": "passage: "}}, {"prompts": {"x": "say: "}, "default_prompt_name": "x"}):
        write(path, wanted)
        with pytest.raises(ModelError, match="before every document"):
            read_model_folder(folder)


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


def test_other_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"model_type": "t5"})
    with pytest.raises(ModelError, match="t5"):
        read_model_folder(folder)
