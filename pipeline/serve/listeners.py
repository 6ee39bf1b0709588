"""Which addresses of this machine a port is listened on at, as the kernel says."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = "0A"  # of include/net/tcp_states.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that takes connections."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached from this machine only."""
        address = ipaddress.ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback


def list_listeners(ports: Collection[int]) -> list[Listener]:
    """Who listens on these ports in this network namespace.

    Raises:
        OSError: the kernel's tables cannot be read, as on systems other than Linux.
    """
    found = []
    for table in _TABLES:
        if table != _TABLES[0] and not table.exists():  # a kernel without IPv6
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTEN and int(port, 16) in ports:
                found.append(Listener(address=_read_address(address), port=int(port, 16)))
    return found


def _read_address(digits: str) -> str:
    """An address as the tables write it: words of four bytes in hex, each in the machine's order."""
    words = [bytes.fromhex(digits[start : start + 8]) for start in range(0, len(digits), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return str(ipaddress.ip_address(packed))
