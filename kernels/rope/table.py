"""Angles of positions, for all layers that turn alike.

P positions, R = head dim / 2 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """Angles of every position, for layers of one theta: cosines and sines, float32 [P, R]."""

    cos_PR: torch.Tensor
    sin_PR: torch.Tensor


def make_rotary_table(
    *, theta: float, head_dim: int, num_positions: int, factor: float = 1.0, device: torch.device | str = "cpu"
) -> RotaryTable:
    """The table for positions 0 to ``num_positions`` - 1; pair r turns by theta^(-2r / head_dim) / factor a position,
    in radians."""
    places_R = torch.arange(0, head_dim, 2, dtype=torch.int64).float()
    frequencies_R = 1.0 / (theta ** (places_R / head_dim)) / factor
    angles_PR = torch.arange(num_positions).float()[:, None] * frequencies_R[None, :]
    return RotaryTable(cos_PR=angles_PR.cos().to(device), sin_PR=angles_PR.sin().to(device))
