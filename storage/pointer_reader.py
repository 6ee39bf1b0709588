"""Looks at the published pointer of one store again and again, as an endpoint does twice a second."""

from __future__ import annotations

import time
from typing import ClassVar

from lodestream.storage.location import Location, Place
from lodestream.storage.registers.protocol import CasRegister, Version
from lodestream.storage.snapshot import PointerRecord, explain_missing, open_register


class PointerReader:
    """Reads the pointer of one store again and again: the register stays open, and an unchanged record is not parsed.

    The register is opened anew after an error and every ``REOPEN_AFTER_S`` seconds, for a store may be removed and made
    again elsewhere. Not safe for use by many threads at once.
    """

    REOPEN_AFTER_S: ClassVar[float] = 30.0

    def __init__(self, place: Place) -> None:
        self._location = Location.parse(place)
        self._register: CasRegister | None = None
        self._opened_at = 0.0
        self._last: tuple[PointerRecord, Version] | None = None

    def read(self) -> PointerRecord:
        """Return the record; the same object as before where it is unchanged.

        Raises:
            StoreNotFound, StoreCorrupt, StoreSchemaMismatch, StoreUnreachable: see read_pointer.
        """
        if self._register is not None and time.monotonic() - self._opened_at >= self.REOPEN_AFTER_S:
            self.close()
        try:
            found = self._open().read()
            if found is None:
                raise explain_missing(self._location)
            if self._last is None or self._last[1] != found[1]:
                self._last = PointerRecord.from_json(found[0]), found[1]
        except BaseException:
            self.close()
            raise
        return self._last[0]

    def close(self) -> None:
        """Let go of connections. The next call makes new ones."""
        register, self._register = self._register, None
        if register is not None:
            register.close()

    def _open(self) -> CasRegister:
        if self._register is None:
            self._register, self._opened_at = open_register(self._location), time.monotonic()
        return self._register
