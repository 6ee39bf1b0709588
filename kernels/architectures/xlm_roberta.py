"""XLM-R and RoBERTa: BERT whose positions begin behind that of the padding token."""

from __future__ import annotations

from typing import Final

from lodestream.kernels.architectures.bert import BERT_NAMES, describe_bert
from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import Architecture, EncoderDescription


def describe_xlm_roberta(config: ModelConfig) -> EncoderDescription:
    """Reads the config.json of XLM-R or RoBERTa."""
    return describe_bert(config, first_position=config.integer("pad_token_id", default=1) + 1)


XLM_ROBERTA: Final = Architecture(
    describe=describe_xlm_roberta,
    names=BERT_NAMES,
    prefixes=("roberta.",),
    ignored=("embeddings.position_ids",),
)
