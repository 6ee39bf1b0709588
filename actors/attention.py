"""Which segments are attended sparsely, and how: ``encoder.attention`` and ``encoder.quality`` become a plan a segment.

A plan follows from the segment's length, the density of its text and the gate, and from nothing else. What it holds is
part of the segment's fingerprint; a dense segment has none, so that its vectors stay usable whatever the setting.

T tokens of a segment, P paragraphs of a document.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lodestream.kernels.architectures.description import EncoderDescription
from lodestream.kernels.attention.budget import HEAD_DIMS, SegmentPlan, cut_segment, find_exact_rows, plan_segment
from lodestream.kernels.attention.gate import GateTable, find_gate

AttentionMode = Literal["auto", "dense", "sparse"]
Quality = Literal["low", "medium", "high"]

ATTENTION_VERSION: Final = 3
"""Raised when the code of sparse attention changes a bit of the states; part of the fingerprint of sparse segments."""

SPARSE_FROM: Final[Mapping[AttentionMode, int]] = {"auto": 2048, "sparse": 256, "dense": sys.maxsize}
"""Tokens from which on a segment may be sparse. No shorter one was ever faster on a CPU, so that a gate begins there;
with ``sparse`` the limit is where hardly a block could be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLevel:
    """What a word of ``encoder.quality`` means.

    Attributes:
        shares: rungs: parts of a segment's attention that are computed exactly; above the last comes dense attention.
        bound: the mean error of a layer, relative to what dense attention gives, above which it climbs.
        exact_density: text from this density on is attended exactly; above 1 for never.
        last_dense: whether the last layer is dense, which helps the vectors of sentences most.
    """

    shares: tuple[float, ...]
    bound: float
    exact_density: float
    last_dense: bool


LEVELS: Final[Mapping[str, QualityLevel]] = {
    "high": QualityLevel(shares=(0.6,), bound=0.2, exact_density=0.95, last_dense=True),
    "medium": QualityLevel(shares=(0.4, 0.6), bound=0.25, exact_density=0.98, last_dense=True),
    "low": QualityLevel(shares=(0.25, 0.4, 0.6), bound=0.4, exact_density=1.01, last_dense=False),
}
"""docs/kernels.md says what each costs in quality and saves in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPolicy:
    """How segments are attended under one feature version. Picklable; needs no torch.

    Attributes:
        mode: "auto" attends sparsely where the gate says that this is faster, "sparse" wherever it is possible.
        quality: a key of LEVELS.
        gate: break-even; of "sparse" it is open from SPARSE_FROM on.
    """

    mode: Literal["auto", "sparse"]
    quality: Quality
    gate: GateTable

    @property
    def min_tokens(self) -> int | None:
        """Tokens from which on a segment may be sparse; None where the gate never opens."""
        lowest = LEVELS[self.quality].shares[0]
        return next((tokens for tokens, share in self.gate.points if share >= lowest), None)

    def as_dict(self) -> dict[str, Any]:
        """What belongs to the recipe of a feature version; ``read_gate`` reads the gate of it."""
        level = asdict(LEVELS[self.quality]) | {"shares": list(LEVELS[self.quality].shares)}
        return {
            "mode": self.mode,
            "quality": self.quality,
            "level": level,
            "gate": self.gate.as_dict(),
            "version": ATTENTION_VERSION,
        }

    def plan(
        self,
        density_P: NDArray[np.float32],
        tokens_P2: NDArray[np.int32],
        *,
        segment_tokens: tuple[int, int],
        num_around: tuple[int, int],
    ) -> SegmentPlan | None:
        """The plan of a segment; None where it is attended densely.

        Args:
            density_P: float32 [P], in [0, 1], of the document's paragraphs.
            tokens_P2: int32 [P, 2], the tokens of each, half-open; a partition of the document's tokens.
            segment_tokens: the segment's tokens, half-open; whole paragraphs.
            num_around: tokens that the encoder sees before and after them (special ones, a heading prefix).
        """
        start, end = segment_tokens
        num_tokens = end - start + sum(num_around)
        level = LEVELS[self.quality]
        if not self.gate.takes_sparse(num_tokens, level.shares[0]):
            return None
        first, last = np.searchsorted(tokens_P2[:, 0], [start, end])
        inside = slice(first, last)
        density_T = np.zeros(num_tokens, np.float32)
        sizes = tokens_P2[inside, 1] - tokens_P2[inside, 0]
        density_T[num_around[0] : num_tokens - num_around[1]] = np.repeat(density_P[inside], sizes)
        return plan_segment(
            num_tokens,
            find_exact_rows(density_T, cut_segment(num_tokens), exact_density=level.exact_density),
            shares=level.shares,
            bound=level.bound,
            last_dense=level.last_dense,
            gate=self.gate,
        )


def find_obstacle(model: EncoderDescription) -> str | None:
    """Why a model's attention cannot be sparse; None where it can."""
    if model.head_dim not in HEAD_DIMS:
        return f"heads are {model.head_dim} wide, which is none of {', '.join(map(str, HEAD_DIMS))}"
    if model.num_key_heads != model.num_heads:
        return "heads of queries share heads of keys"
    if model.is_causal:
        return "a token sees those before it only"
    return None


def make_policy(
    mode: AttentionMode, quality: Quality, gate: GateTable | None, *, engine: str, head_dim: int
) -> AttentionPolicy | None:
    """The policy of a configuration; None for dense attention throughout.

    Args:
        mode, quality: as configured.
        gate: measured on this kind of machine; None takes the table that comes with this version, and without one for
            this engine and head dim nothing is sparse.
        engine: such as "torch-cpu bf16".
        head_dim: D.
    """
    if mode == "dense":
        return None
    if mode == "sparse":
        opened = GateTable(engine="forced", head_dim=head_dim, points=((SPARSE_FROM["sparse"], 1.0),))
        return AttentionPolicy(mode="sparse", quality=quality, gate=opened)
    found = gate or find_gate(engine, head_dim)
    return None if found is None else AttentionPolicy(mode="auto", quality=quality, gate=found)


def explain_dense(
    mode: AttentionMode, model: EncoderDescription, policy: AttentionPolicy | None, *, max_tokens: int
) -> str | None:
    """Why no segment of up to ``max_tokens`` tokens can be sparse; None where one can."""
    obstacle = find_obstacle(model)
    if mode == "dense":
        return "encoder.attention = dense"
    if obstacle:
        return f"of this model {obstacle}"
    if max_tokens < SPARSE_FROM[mode]:
        return f"segments have at most {max_tokens} tokens, and sparse attention begins at {SPARSE_FROM[mode]}"
    if policy is None or policy.min_tokens is None:
        return "no length was measured at which it is faster"
    return None


def read_gate(recipe: Mapping[str, Any], *, engine: str, head_dim: int) -> GateTable | None:
    """The gate that a stored recipe was made with; None where it has none for this engine and head dim."""
    stored = recipe.get("attention")
    if not stored or stored["mode"] != "auto":
        return None
    gate = GateTable.from_dict(stored["gate"])
    return gate if (gate.engine, gate.head_dim) == (engine, head_dim) else None


def tag_plan(plan: SegmentPlan | None) -> bytes:
    """What a segment's fingerprint holds of its attention; nothing for dense attention."""
    if plan is None:
        return b""
    return hashlib.blake2b(repr((ATTENTION_VERSION, plan)).encode(), digest_size=16).digest()
