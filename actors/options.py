"""What a caller chooses about features, and what the stages count."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Final

from lodestream.actors.attention import AttentionMode, Quality
from lodestream.actors.density import BASE_BELOW
from lodestream.actors.models import DEFAULT_MODEL
from lodestream.kernels.attention.error_bins import add_bins
from lodestream.kernels.attention.gate import GateTable


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturizerOptions:
    """Everything that decides what the features of a text are. Picklable; cheap to hold.

    Attributes:
        model: a known package's name or a folder.
        weights_sha256: the hash that a folder's weights must have, hex; empty for whatever they have.
        precision: "auto" takes bf16 where the processor has it; "bf16" or "fp32" as said.
        batch_tokens: packed tokens an encoder call; changes speed, never a vector.
        max_tokens: tokens of a segment, special tokens included; 0 = the model's own.
        target_tokens: paragraphs shorter than this may share a segment with their neighbours.
        over_headings: segments may reach over headings; else each heading starts one.
        heading_prefix: put the headings above a segment before it.
        base_below: paragraphs of lower density get base features (no sentence rows); 0 = every paragraph is fine.
        attention: "auto" attends long segments sparsely where the gate says that this is faster, "sparse" wherever it
            is possible, "dense" nowhere.
        quality: of sparse attention, "low", "medium" or "high".
        gate: break-even of this kind of machine; None takes the table that comes with this version.
    """

    model: str = DEFAULT_MODEL
    weights_sha256: str = ""
    precision: str = "auto"
    batch_tokens: int = 2048
    max_tokens: int = 0
    target_tokens: int = 32
    over_headings: bool = False
    heading_prefix: bool = False
    base_below: float = BASE_BELOW
    attention: AttentionMode = "auto"
    quality: Quality = "high"
    gate: GateTable | None = None


@dataclass(slots=True, kw_only=True)
class EncodeCounts:
    """What one or more calls of ``encode`` did. Tokens are without special and heading-prefix tokens (``overhead``).

    Attributes:
        tokens_sparse: of the encoded tokens, those of segments that were attended sparsely.
        longest_segment: tokens of the longest segment that was encoded, special tokens included.
        pairs_sparse: query and key pairs of all layers of the sparse segments; pairs_kept: those computed exactly.
        flops_sparse: of the attention of those layers, all that it took; flops_dense: what dense attention would take.
        layers_sparse: layers of the sparse segments; layers_climbed: rungs that were over the bound of the error.
        attention_errors: errors of those layers, counted as kernels/attention/error_bins.py says, by layer.
    """

    segments_total: int = 0
    segments_encoded: int = 0
    tokens_total: int = 0
    tokens_encoded: int = 0
    tokens_overhead: int = 0
    tokens_base: int = 0
    tokens_sparse: int = 0
    longest_segment: int = 0
    pairs_sparse: int = 0
    pairs_kept: int = 0
    flops_sparse: int = 0
    flops_dense: int = 0
    layers_sparse: int = 0
    layers_climbed: int = 0
    attention_errors: list[list[int]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: EncodeCounts) -> None:
        """Adds ``other`` to this."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest_segment = max(self.longest_segment, other.longest_segment)
        self.attention_errors = add_bins(self.attention_errors, other.attention_errors)
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def clock(self, stage: str, started: float) -> float:
        """Adds the time since ``started`` to ``stage``; returns now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - started
        return now


_SUMS: Final = tuple(
    field.name for field in fields(EncodeCounts) if field.type == "int" and field.name != "longest_segment"
)
