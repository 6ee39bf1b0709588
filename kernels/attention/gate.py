"""When sparse attention is worth it: a table of measured break-even points, part of what vectors depend on.

The table is measured once for a kind of machine and kept with the features, so that a segment takes the same path in
every run that writes to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lodestream.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One comparison: ``ratio`` is sparse time / best dense time, mask building included."""

    num_tokens: int
    kept_share: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTable:
    """Kept share up to which sparse attention is faster than dense, by length.

    Attributes:
        engine: whose times they are, such as "torch-cpu fp32".
        head_dim: D.
        points: (tokens, kept share), by tokens; between two lengths the shorter one's share counts, below the first
            all is dense. The share is 0 where sparse attention never wins.
    """

    engine: str
    head_dim: int
    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        lengths = [tokens for tokens, _ in self.points]
        if lengths != sorted(set(lengths)) or not all(0 <= share <= 1 for _, share in self.points):
            raise ConfigError(
                f"the gate table of {self.engine} is out of order or has a share outside [0, 1]: {self.points}",
                "measure it again: python tests/bench/bench_sparse_attention.py",
            )

    def break_even(self, num_tokens: int) -> float:
        """The largest kept share at which a segment of ``num_tokens`` tokens is not slower than dense."""
        return max(((tokens, share) for tokens, share in self.points if tokens <= num_tokens), default=(0, 0.0))[1]

    def takes_sparse(self, num_tokens: int, kept_share: float) -> bool:
        """Whether a segment whose mask keeps at most ``kept_share`` of its pairs is attended sparsely."""
        return 0 < kept_share <= self.break_even(num_tokens)

    def as_dict(self) -> dict[str, Any]:
        """As it is stored; ``from_dict`` reads it."""
        return {"engine": self.engine, "head_dim": self.head_dim, "points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GateTable:
        """The table of ``as_dict``."""
        points = tuple((int(tokens), float(share)) for tokens, share in stored["points"])
        return cls(engine=str(stored["engine"]), head_dim=int(stored["head_dim"]), points=points)


def build_gate(
    engine: str, head_dim: int, measurements: Iterable[Measurement], *, largest_ratio: float = 0.95
) -> GateTable:
    """The table that follows from measurements.

    A length's share is the largest one measured at which, as at every smaller one, sparse took at most
    ``largest_ratio`` of the dense time; and no length gets more than the next longer one, so that one lucky measurement
    opens nothing.
    """
    by_length: dict[int, list[Measurement]] = {}
    for measurement in measurements:
        by_length.setdefault(measurement.num_tokens, []).append(measurement)
    points: list[tuple[int, float]] = []
    bound = 1.0
    for num_tokens in sorted(by_length, reverse=True):
        share = 0.0
        for measurement in sorted(by_length[num_tokens], key=lambda m: m.kept_share):
            if measurement.ratio > largest_ratio:
                break
            share = measurement.kept_share
        bound = min(bound, share)
        points.append((num_tokens, bound))
    return GateTable(engine=engine, head_dim=head_dim, points=tuple(reversed(points)))


CPU_GATES: Final = (
    GateTable(
        engine="torch-cpu fp32",
        head_dim=32,
        points=((512, 0.0), (1024, 0.0), (2048, 0.25), (4096, 0.4), (8192, 0.5)),
    ),
    GateTable(
        engine="torch-cpu fp32",
        head_dim=64,
        points=((512, 0.0), (1024, 0.0), (2048, 0.25), (4096, 0.5), (8192, 0.5)),
    ),
    GateTable(
        engine="torch-cpu bf16",
        head_dim=32,
        points=((512, 0.0), (1024, 0.0), (2048, 0.25), (4096, 0.5), (8192, 0.6)),
    ),
    GateTable(
        engine="torch-cpu bf16",
        head_dim=64,
        points=((512, 0.0), (1024, 0.0), (2048, 0.25), (4096, 0.5), (8192, 0.6)),
    ),
)
"""Break-even of ``docs/bench/sparse_attention.jsonl``, correction rows included; a test holds them to that file."""


def find_gate(engine: str, head_dim: int) -> GateTable | None:
    """The table that comes with this version; None where none was measured for this engine and head dim."""
    return next((gate for gate in CPU_GATES if (gate.engine, gate.head_dim) == (engine, head_dim)), None)
