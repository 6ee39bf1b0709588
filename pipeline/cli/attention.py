"""How the command line tells what the attention of a run was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_attention(values: Mapping[str, Any]) -> str:
    """One line on the attention of a run, from the values of its report; nothing where nothing was encoded."""
    tokens = values["tokens"]
    total = tokens["dense"] + tokens["sparse"]
    if not total:
        return ""
    shares = (
        f"{100 * tokens['dense'] / total:.1f}% of encoded tokens dense, {100 * tokens['sparse'] / total:.1f}% sparse"
    )
    if values["why_dense"]:
        return f"{shares} ({values['why_dense']})"
    if not tokens["sparse"]:
        return shares
    parts = [f"quality {values['quality']}", f"{100 * values['pairs_kept']:.1f}% of their attention exact"]
    if values.get("flops"):
        parts.append(f"{100 * values['flops']:.1f}% of dense attention's FLOPs")
    measured = [layer for layer in values["error"] if layer["p99"]]
    if measured:
        worst = max(measured, key=lambda layer: float(layer["mean"]))
        parts.append(f"measured error {worst['mean']:.3f} in the worst layer, p99 {worst['p99']:.3f}")
    if values["layers"]["climbed"]:
        parts.append(f"a larger share taken {values['layers']['climbed']} times for it")
    return f"{shares} ({', '.join(parts)})"
