"""Inputs of the small operators: every form is tested on the same ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.norm import Norm

ODD_ROWS = (1, 63, 127, 517)
WIDTHS = (384, 768, 1024, 1152)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_rows(num_rows: int, dim: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """[T, C] with columns that stand out, as those of transformers do."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dim, generator=generator)
    rows[:, :: max(1, dim // 5)] *= 20
    return (rows + 0.5).to(dtype)


def make_hard_rows(dim: int, dtype: torch.dtype) -> torch.Tensor:
    """[8, C]: zeros, constants, large and tiny values, one value that stands alone, what cancels."""
    rows = make_rows(8, dim, seed=5)
    rows[0] = 0
    rows[1] = 3.0
    rows[2] = 1e4
    rows[3] *= 1e4 / rows[3].abs().max()
    rows[4] *= 1e-41 if dtype != torch.float16 else 1e-7
    rows[5] = 0
    rows[5, dim // 2] = -5.0
    rows[6] = rows[6] * 1e-3 + 100
    rows[7] *= 1e-18 if dtype != torch.float16 else 1e-4
    return rows.to(dtype)


def make_norm(
    kind: str, dim: int, *, eps: float = 1e-6, bias: bool = True, adds_one: bool = False, seed: int = 1
) -> Norm:
    generator = torch.Generator().manual_seed(seed)
    weight = 1 + 0.3 * torch.randn(dim, generator=generator)
    if kind == "rms":
        return Norm(kind="rms", weight_C=weight, eps=eps, adds_one=adds_one)
    bias_C = torch.randn(dim, generator=generator) if bias else None
    return Norm(kind="layer", weight_C=weight, bias_C=bias_C, eps=eps, adds_one=adds_one)


def name_norm(name: str, dim: int, seed: int = 1) -> Norm:
    """The norm "layer", "layer without bias", "rms" or "1 + rms"."""
    kind = "rms" if "rms" in name else "layer"
    return make_norm(kind, dim, bias=name == "layer", adds_one=name.startswith("1"), seed=seed)


def make_tables(
    dim: int, *, positions: bool = True, types: bool = True, dtype: torch.dtype = torch.float32, first_position: int = 0
) -> EmbeddingTables:
    """Tables of 50 words, 600 positions and 2 types."""
    return EmbeddingTables(
        words_VC=make_rows(50, dim, dtype=dtype, seed=2),
        positions_PC=make_rows(600, dim, dtype=dtype, seed=3) if positions else None,
        types_UC=make_rows(2, dim, dtype=dtype, seed=4) if types else None,
        scale=1.0 if positions else dim**0.5,
        first_position=first_position if positions else 0,
    )


def make_tokens(num_tokens: int, *, limit: int = 50, seed: int = 6) -> torch.Tensor:
    """int64 [T] below ``limit``."""
    return torch.randint(limit, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def place(value: Any, device: torch.device) -> Any:
    """Tensors, and dataclasses that hold some, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is None:
        return value
    return replace(value, **{name: place(getattr(value, name), device) for name in fields})
