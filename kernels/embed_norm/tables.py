"""What embeddings are made of.

V vocabulary, P positions, U token types, C model dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTables:
    """What the embeddings of a model are made of.

    Attributes:
        words_VC: row of each token id.
        positions_PC: row of each position; None where attention knows the positions.
        types_UC: row of each token type; None where there are no types.
        scale: factor of the sum (Gemma: the root of C).
        first_position: row of a segment's first token in ``positions_PC`` (XLM-R: 2).
    """

    words_VC: torch.Tensor
    positions_PC: torch.Tensor | None = None
    types_UC: torch.Tensor | None = None
    scale: float = 1.0
    first_position: int = 0
