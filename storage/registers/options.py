"""How long a register's server is waited for, and what an object store wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterOptions:
    """Options of a register in a server.

    ``timeout_s``        the longest wait for one answer
    ``give_up_after_s``  after which an unreachable server is an error; calls are tried again until then
    ``storage``          for object stores: endpoint, region and credentials, under the names of obstore (and Lance)
    """

    timeout_s: float = 10.0
    give_up_after_s: float = 30.0
    storage: Mapping[str, str] = field(default_factory=dict)
