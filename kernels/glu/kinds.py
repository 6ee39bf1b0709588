"""The activations there are, and what of a row they are applied to."""

from __future__ import annotations

from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "silu"]
"""GELU by the error function, GELU by tanh, SiLU. The two GELU differ by up to 5e-4: a model has one of them."""

Activated = Literal["all", "first", "last"]
"""Which columns are activated: all, or one half, which the other half is multiplied with."""
