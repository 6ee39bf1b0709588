"""Which layers see a window only: ``layer_types`` of newer files, or a pattern of older ones."""

from __future__ import annotations

from lodestream.kernels.architectures.config import ModelConfig


def read_windowed(
    config: ModelConfig, num_layers: int, *, every_names: tuple[str, ...], every: int, first_is_full: bool
) -> list[bool]:
    """Whether each layer sees a window only.

    Args:
        config: the file.
        num_layers: L.
        every_names: keys of the pattern in older files: one layer of so many sees its whole segment.
        every: where the file has none.
        first_is_full: whether that is the first of them, or the last.

    Raises:
        ModelError: the file names a type of layer that is not supported, or not one for each layer.
    """
    types = config.find("layer_types")
    if types is None:
        every = config.integer(*every_names, default=every)
        if every == 0:
            raise config.refuse(every_names[0], every, "not at least 1")
        return [(index if first_is_full else index + 1) % every != 0 for index in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers or set(types) - {"full_attention", "sliding_attention"}:
        raise config.refuse(
            "layer_types", types, f"not supported (full_attention or sliding_attention {num_layers} times is)"
        )
    return [kind == "sliding_attention" for kind in types]
