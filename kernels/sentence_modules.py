"""What sentence-transformers' files of a model folder say: what follows the encoder, prompts, and lengths.

modules.json                       which modules there are, and where
1_Pooling/config.json              how one vector is made of a text's token states
2_Dense/config.json, ...           linears after that
config_sentence_transformers.json  what goes before a query's text and a document's
sentence_bert_config.json          how much the model is meant to read at once
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from lodestream.errors import ModelError
from lodestream.kernels.architectures.config import ModelConfig

Pooling = Literal["mean", "cls", "last"]

_POOLING_KEYS: Final[Mapping[str, Pooling]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES: Final[Mapping[str, Pooling]] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_KNOWN_MODULES: Final = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLING_FOLDER: Final = "1_Pooling"
# The names under which sentence-transformers looks for what goes before a document, in its order.
_DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
_IDENTITY: Final = "Identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseHead:
    """A linear after pooling, without an activation: the mean of its outputs is its output of the mean."""

    folder: str
    num_in: int
    num_out: int
    has_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceModules:
    """What follows the encoder, and what comes before the text.

    Attributes:
        pooling: how the model makes one vector of a text's token states.
        heads: linears that follow, in their order.
        query_prompt, document_prompt: what the model wants before a text; often nothing.
        max_seq_length: tokens that the model is meant to read at once; None where nothing is said.
    """

    pooling: Pooling
    heads: tuple[DenseHead, ...]
    query_prompt: str
    document_prompt: str
    max_seq_length: int | None


def read_sentence_modules(folder: Path) -> SentenceModules:
    """Reads the files of a model folder; without them, vectors are means.

    Raises:
        ModelError: one is unreadable, or asks for what is not supported.
    """
    pooling_folder, dense_folders = _read_modules(folder)
    pooling, pools_prompt = _read_pooling(folder / pooling_folder)
    query_prompt, document_prompt = _read_prompts(folder)
    if (query_prompt or document_prompt) and not pools_prompt:
        raise ModelError(
            f"{folder / pooling_folder / 'config.json'}: include_prompt = false with prompts is not supported",
            "take a model that pools its prompts, or one without",
        )
    return SentenceModules(
        pooling=pooling,
        heads=tuple(_read_dense(folder, name) for name in dense_folders),
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        max_seq_length=_read_max_seq_length(folder),
    )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ModelError: it is missing, unreadable, or no object.
    """
    values = _load_json(folder / name)
    if not isinstance(values, dict):
        raise ModelError(f"{folder / name} holds no JSON object", "install or copy the model again")
    return values


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no {path.name}",
            "a model folder needs config.json, tokenizer.json and model.safetensors",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "install or copy the model again") from None


def _read_modules(folder: Path) -> tuple[str, list[str]]:
    """The folders of pooling and of the linears after it. Normalising may follow (vectors are unit length in any case);
    all else changes vectors in ways unknown here."""
    path = folder / "modules.json"
    if not path.is_file():
        return _POOLING_FOLDER, []
    try:
        modules = [(str(m["type"]).rsplit(".", 1)[-1], str(m.get("path", ""))) for m in _load_json(path)]
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error!r}", "install or copy the model again") from None
    kinds = [kind for kind, _ in modules]
    unknown = [kind for kind in kinds if kind not in _KNOWN_MODULES]
    if unknown:
        raise ModelError(
            f"{folder}: the module {', '.join(unknown)} after the encoder is not supported",
            f"take a model whose modules.json has only {', '.join(_KNOWN_MODULES)}",
        )
    # Any number of linears, and normalising at the end.
    wanted = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * kinds.count("Normalize")]
    if kinds not in (wanted, ["Transformer"]):
        raise ModelError(
            f"{path}: the modules {', '.join(kinds)} are not supported", f"supported is {', '.join(wanted)}"
        )
    places = dict(modules)
    if places.get("Transformer"):
        raise ModelError(
            f"{path} has the transformer in the folder {places['Transformer']!r}, a layout of old",
            "open the model with a current sentence-transformers and save it again",
        )
    return places.get("Pooling", _POOLING_FOLDER), [place for kind, place in modules if kind == "Dense"]


def _read_pooling(folder: Path) -> tuple[Pooling, bool]:
    """(pooling, whether the tokens of a prompt count)."""
    path = folder / "config.json"
    if not path.is_file():
        return "mean", True
    values = read_json(folder, path.name)
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    pools_prompt = values.get("include_prompt", True) is not False
    if values.get("pooling_mode") in _POOLING_NAMES and not chosen:
        return _POOLING_NAMES[values["pooling_mode"]], pools_prompt
    if len(chosen) != 1 or chosen[0] not in _POOLING_KEYS:
        named = ", ".join(chosen) or values.get("pooling_mode") or "nothing"
        raise ModelError(
            f"{path}: pooling by {named} is not supported", "take a model with mean, cls or last-token pooling"
        )
    return _POOLING_KEYS[chosen[0]], pools_prompt


def _read_dense(folder: Path, name: str) -> DenseHead:
    path = folder / name / "config.json"
    config = ModelConfig(path=path, values=read_json(path.parent, path.name))
    activation = config.text("activation_function", default=_IDENTITY).rsplit(".", 1)[-1]
    if activation != _IDENTITY:
        raise config.refuse("activation_function", activation, f"not supported ({_IDENTITY} is)")
    for key in ("module_input_name", "module_output_name"):
        config.require(key, "sentence_embedding", default="sentence_embedding")
    return DenseHead(
        folder=name,
        num_in=config.integer("in_features"),
        num_out=config.integer("out_features"),
        has_bias=config.flag("bias", default=True),
    )


def _read_prompts(folder: Path) -> tuple[str, str]:
    """(of a query, of a document)."""
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return "", ""
    values = read_json(folder, path.name)
    prompts = values.get("prompts") or {}
    default = prompts.get(values.get("default_prompt_name") or "", "")
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), default)
    return str(prompts.get("query", default) or ""), str(document or "")


def _read_max_seq_length(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    config = ModelConfig(path=path, values=read_json(folder, path.name))
    config.require("do_lower_case", False, default=False)
    return config.integer("max_seq_length", default=0) or None
