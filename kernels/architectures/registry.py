"""Which architectures are supported, by ``model_type`` of config.json, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lodestream.errors import ModelError
from lodestream.kernels.architectures.bert import BERT
from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture
from lodestream.kernels.architectures.gemma import GEMMA
from lodestream.kernels.architectures.gte import GTE
from lodestream.kernels.architectures.modernbert import MODERNBERT
from lodestream.kernels.architectures.nomic import NOMIC
from lodestream.kernels.architectures.qwen3 import QWEN3
from lodestream.kernels.architectures.xlm_roberta import XLM_ROBERTA

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "bert": BERT,
    "roberta": XLM_ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "modernbert": MODERNBERT,
    "nomic_bert": NOMIC,
    "new": GTE,
    "gte": GTE,
    "qwen3": QWEN3,
    "gemma3_text": GEMMA,
}

_REFUSED: Final[Mapping[str, str]] = {
    "mpnet": "adds a bias by relative position to attention",
    "t5": "adds a bias by relative position to attention",
    "deberta-v2": "adds terms of relative position to attention",
    "jina_bert": "adds ALiBi's bias to attention",
    "mosaic_bert": "adds ALiBi's bias to attention",
}


def find_architecture(config: ModelConfig) -> Architecture:
    """The architecture that a config.json names.

    Raises:
        ModelError: it is not supported.
    """
    name = str(config.find("model_type") or "")
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        reason = f" ({name} {_REFUSED[name]})" if name in _REFUSED else ""
        raise ModelError(
            f"{config.path}: the architecture {name or 'without a name'!r} is not supported{reason}",
            f"take a model of one of these: {', '.join(ARCHITECTURES)}",
        )
    return architecture
