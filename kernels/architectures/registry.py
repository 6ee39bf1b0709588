"""Which architectures are supported, by ``model_type`` of config.json, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lodestream.errors import ModelError
from lodestream.kernels.architectures.bert import BERT
from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture

ARCHITECTURES: Final[Mapping[str, Architecture]] = {"bert": BERT}


def find_architecture(config: ModelConfig) -> Architecture:
    """The architecture that a config.json names.

    Raises:
        ModelError: it is not supported.
    """
    name = str(config.find("model_type") or "")
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise ModelError(
            f"{config.path}: the architecture {name or 'without a name'!r} is not supported",
            f"take a model of one of these: {', '.join(ARCHITECTURES)}",
        )
    return architecture
