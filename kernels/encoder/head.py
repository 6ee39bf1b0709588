"""The linears that some models have after pooling.

S vectors, C model dim, E width of the vectors after them.
"""

from __future__ import annotations

import torch

from lodestream.errors import ModelError
from lodestream.kernels.linear import PackedLinear
from lodestream.kernels.weights import ModelFolder, load_head_tensors


class PoolingHead:
    """[S, E] of pooled vectors [S, C], in float32. Each row depends on its own alone, bit for bit."""

    def __init__(self, model: ModelFolder) -> None:
        self._linears = []
        for head, tensors in zip(model.heads, load_head_tensors(model), strict=True):
            wanted: dict[str, tuple[int, ...]] = {"linear.weight": (head.num_out, head.num_in)}
            if head.has_bias:
                wanted["linear.bias"] = (head.num_out,)
            found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            if found != wanted:
                raise ModelError(
                    f"{model.path / head.folder}: the weights are {found}, by config.json they are {wanted}",
                    "install or copy the model again",
                )
            self._linears.append(
                PackedLinear(tensors["linear.weight"], tensors.get("linear.bias"), dtype=torch.float32)
            )

    def __call__(self, vectors_SC: torch.Tensor) -> torch.Tensor:
        """float32 [S, E]."""
        with torch.inference_mode():
            for linear in self._linears:
                vectors_SC = linear(vectors_SC)
        return vectors_SC
