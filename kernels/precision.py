"""What the encoder's states depend on besides the weights: the engine, the version of its code, and the precision that
a processor computes in natively. Known without torch: a run that encodes nothing never loads it.
"""

from __future__ import annotations

from functools import cache
from typing import Final, Literal

Precision = Literal["bf16", "fp32"]

ENGINE: Final = "torch-cpu"
STATES_VERSION: Final = 1
"""Raised when the code of this engine changes a bit of the states; part of every fingerprint."""

PRODUCTS_FROM: Final = 1024
"""Tokens from which on a segment's bfloat16 attention is computed by plain products; states of shorter segments do not
depend on it."""

_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})


@cache
def native_precision() -> Precision:
    """ "bf16" where the processor multiplies bfloat16 in hardware (avx512_bf16 or AMX), else "fp32"."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("flags"):
                    return "bf16" if _BF16_FLAGS & set(line.split()) else "fp32"
    except OSError:
        pass
    return "fp32"


def name_states(precision: Precision, *, max_tokens: int) -> str:
    """The engine and the version of its states, as recipes name them, for segments of up to ``max_tokens`` tokens."""
    name = f"{ENGINE}/{STATES_VERSION}"
    return f"{name}/products" if precision == "bf16" and max_tokens >= PRODUCTS_FROM else name
