"""What a caller chooses about features, and what the stages count."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lodestream.actors.density import BASE_BELOW
from lodestream.actors.models import DEFAULT_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturizerOptions:
    """Everything that decides what the features of a text are. Picklable; cheap to hold.

    Attributes:
        model: a known package's name or a folder.
        precision: "auto" takes bf16 where the processor has it; "bf16" or "fp32" as said.
        batch_tokens: packed tokens an encoder call; changes speed, never a vector.
        max_tokens: tokens of a segment, special tokens included; 0 = the model's own.
        target_tokens: paragraphs shorter than this may share a segment with their neighbours.
        heading_prefix: put the headings above a segment before it.
        base_below: paragraphs of lower density get base features (no sentence rows); 0 = every paragraph is fine.
    """

    model: str = DEFAULT_MODEL
    precision: str = "auto"
    batch_tokens: int = 2048
    max_tokens: int = 0
    target_tokens: int = 32
    heading_prefix: bool = False
    base_below: float = BASE_BELOW


@dataclass(slots=True, kw_only=True)
class EncodeCounts:
    """What one or more calls of ``encode`` did. Tokens are without special and heading-prefix tokens (``overhead``)."""

    segments_total: int = 0
    segments_encoded: int = 0
    tokens_total: int = 0
    tokens_encoded: int = 0
    tokens_overhead: int = 0
    tokens_base: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: EncodeCounts) -> None:
        """Adds ``other`` to this."""
        for name in ("segments_total", "segments_encoded", "tokens_total", "tokens_encoded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.tokens_overhead += other.tokens_overhead
        self.tokens_base += other.tokens_base
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def clock(self, stage: str, started: float) -> float:
        """Adds the time since ``started`` to ``stage``; returns now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - started
        return now
