"""Rotary positions of a config.json: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` of newer files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lodestream.kernels.architectures.config import ModelConfig
from lodestream.kernels.architectures.description import RotaryKind

LayerType = Literal["full_attention", "sliding_attention"]


def read_rotary(
    config: ModelConfig,
    *,
    head_dim: int,
    theta: float,
    theta_names: tuple[str, ...] = ("rope_theta",),
    layer_type: LayerType | None = None,
    is_scaled: bool = True,
) -> RotaryKind:
    """The rotary positions of layers.

    Args:
        config: the file.
        head_dim: D.
        theta: where the file has none.
        theta_names: its names in older files.
        layer_type: of the layers, where a newer file keeps one for each type.
        is_scaled: whether ``rope_scaling`` of older files is meant for these layers.

    Raises:
        ModelError: they are of a kind not supported.
    """
    parameters = _as_mapping(config, "rope_parameters")
    if layer_type is not None and isinstance(parameters.get(layer_type), Mapping):
        parameters = parameters[layer_type]
    scaling = parameters or (_as_mapping(config, "rope_scaling") if is_scaled else {})
    base = parameters.get("rope_theta")
    if base is None:
        base = config.number(*theta_names, default=theta)
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise config.refuse("partial_rotary_factor", scaling["partial_rotary_factor"], "not supported (1.0 is)")
    kind, factor = scaling.get("rope_type", scaling.get("type", "default")), float(scaling.get("factor") or 1.0)
    if kind == "default":
        return RotaryKind(theta=float(base))
    if kind == "linear":
        return RotaryKind(theta=float(base), factor=factor)
    if kind == "ntk" and scaling.get("mixed_b") is None:
        # GTE's fixed NTK scaling, at every length: theta grows, and all frequencies shrink a little.
        return RotaryKind(theta=float(base) * factor, factor=factor ** (2 / head_dim))
    raise config.refuse("rope_scaling", dict(scaling), "not supported (default, linear and ntk without mixed_b are)")


def _as_mapping(config: ModelConfig, name: str) -> Mapping[str, Any]:
    value = config.find(name) or {}
    if not isinstance(value, Mapping):
        raise config.refuse(name, value, "no JSON object")
    return value
