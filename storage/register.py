"""The register of a local store, under the names it had before it got company in ``registers/``."""

from __future__ import annotations

from lodestream.storage.registers.local import KEPT_RECORDS, LocalRegister
from lodestream.storage.registers.protocol import CasRegister, Record, Version

__all__ = ["KEPT_RECORDS", "CasRegister", "LocalRegister", "Record", "Version"]
