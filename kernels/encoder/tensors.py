"""The tensors of a model file under the names of ``kernels.architectures``, each checked against the description."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from lodestream.errors import ModelError
from lodestream.kernels.architectures.description import Architecture, NormKind
from lodestream.kernels.glu.kinds import Activation
from lodestream.kernels.linear import PackedLinear
from lodestream.kernels.norm import Norm

_SUFFIXES: Final = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_IN_A_LAYER: Final = re.compile(r"\.\d+\.")
_LAYER_MARK: Final = "{i}"


class ModelTensors:
    """Tensors that are taken one by one. What nobody has taken in the end was not understood: ``close`` says so."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, torch.Tensor],
        architecture: Architecture,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._path = path
        self._device = device
        self._tensors: dict[str, torch.Tensor] = {}
        self._files: dict[str, str] = {}
        self._unknown: list[str] = []
        names = _Names(architecture)
        for in_file, tensor in tensors.items():
            name = names.translate(in_file)
            if name is not None:
                self._tensors[name] = tensor
                self._files[name] = in_file
            elif names.matters(in_file):
                self._unknown.append(in_file)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor as it is stored, on the device.

        Raises:
            ModelError: it is missing, or of another shape.
        """
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise ModelError(
                f"{self._path}: the weights have no tensor for {name}",
                "config.json and the weights do not belong together: install or copy the model again",
            )
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{self._path}: the tensor {self._files[name]} is {list(tensor.shape)}, "
                f"by config.json it is {list(shape)}",
                "config.json and the weights do not belong together: install or copy the model again",
            )
        return tensor.to(self._device)

    def split(self, name: str, halves: Sequence[str]) -> None:
        """Gives the halves of a module's rows names of their own."""
        for suffix in ("weight", "bias"):
            whole = self._tensors.pop(f"{name}.{suffix}", None)
            if whole is None:
                continue
            for half, part in zip(halves, whole.chunk(2), strict=True):
                self._tensors[f"{half}.{suffix}"] = part
                self._files[f"{half}.{suffix}"] = self._files[f"{name}.{suffix}"]

    def linear(
        self,
        names: tuple[str, ...],
        num_out: tuple[int, ...],
        num_in: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        activation: Activation | None = None,
    ) -> PackedLinear:
        """One linear of the rows of several, one below the other, of ``num_out`` rows each."""
        weights = [self.take(f"{name}.weight", rows, num_in) for name, rows in zip(names, num_out, strict=True)]
        biases = [self.take(f"{name}.bias", rows) for name, rows in zip(names, num_out, strict=True)] if bias else []
        return PackedLinear(
            torch.cat(weights) if len(weights) > 1 else weights[0],
            torch.cat(biases) if bias else None,
            dtype=dtype,
            activation=activation,
        )

    def norm(self, name: str, dim: int, kind: NormKind) -> Norm:
        """A norm with its weights in float32."""
        weight = self.take(f"{name}.weight", dim).float()
        bias = self.take(f"{name}.bias", dim).float() if kind.has_bias else None
        return Norm(kind=kind.kind, weight_C=weight, bias_C=bias, eps=kind.eps, adds_one=kind.adds_one)

    def close(self) -> None:
        """Refuses a file with tensors that would have changed the states, had they been understood.

        Raises:
            ModelError: there are such.
        """
        left = sorted([*(self._files[name] for name in self._tensors), *self._unknown])
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelError(
                f"{self._path}: the weights have tensors that config.json says nothing of: {', '.join(left[:3])}{more}",
                "config.json and the weights do not belong together, or the model is a variant that is not supported",
            )


class _Names:
    def __init__(self, architecture: Architecture) -> None:
        self._prefixes = architecture.prefixes
        self._names = [(_pattern(old), new) for old, new in architecture.names.items()]
        self._ignored = [_pattern(name) for name in architecture.ignored]

    def translate(self, in_file: str) -> str | None:
        """The name here; None for what is no part of the encoder, or unknown."""
        module, _, suffix = self._strip(in_file).rpartition(".")
        if suffix not in _SUFFIXES:
            return None
        for pattern, new in self._names:
            match = pattern.fullmatch(module)
            if match:
                return f"{new.replace(_LAYER_MARK, ''.join(match.groups()))}.{_SUFFIXES[suffix]}"
        return None

    def matters(self, in_file: str) -> bool:
        """Whether an unknown tensor lies where it would change the states."""
        name = self._strip(in_file)
        module = name.rpartition(".")[0]
        if any(pattern.fullmatch(part) for pattern in self._ignored for part in (name, module)):
            return False
        return bool(_IN_A_LAYER.search(name)) or name.startswith("embeddings.")

    def _strip(self, in_file: str) -> str:
        prefix = next((prefix for prefix in self._prefixes if in_file.startswith(prefix)), "")
        return in_file.removeprefix(prefix)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape(_LAYER_MARK), r"(\d+)"))
