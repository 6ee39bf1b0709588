"""Sizes in bytes as people write them: ``16MiB``, ``2GB``, ``4096``."""

from __future__ import annotations

import re
from typing import Final

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

_BYTES_PER_UNIT: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024**4,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.ASCII)
_MAX_BYTES: Final = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes meant by ``text``: a number, then one of B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB.

    Raises:
        ValueError: ``text`` is no such size, or is no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _BYTES_PER_UNIT:
        raise ValueError(f'must be a size such as "16MiB" or "2GB", not {text!r}')
    number, unit = match.groups()
    # Whole numbers stay integers: a float would round sizes above 2**53 bytes.
    bytes_per_unit = _BYTES_PER_UNIT[unit]
    num_bytes = float(number) * bytes_per_unit if "." in number else int(number) * bytes_per_unit
    if num_bytes != int(num_bytes):
        raise ValueError(f"must be a whole number of bytes, not {text!r}")
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"must be below 8 EiB, not {text!r}")
    return int(num_bytes)


def format_size(num_bytes: int) -> str:
    """``num_bytes`` in the largest binary unit that divides it: ``parse_size`` of it gives ``num_bytes`` back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        bytes_per_unit = _BYTES_PER_UNIT[unit.lower()]
        if num_bytes and num_bytes % bytes_per_unit == 0:
            return f"{num_bytes // bytes_per_unit}{unit}"
    return f"{num_bytes}B"
