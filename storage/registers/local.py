"""A register in a folder: numbered files, each created once and never changed; the highest number is the record."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any, Final

from lodestream.errors import CommitConflict, CommitStateUnknown, StoreUnwritable
from lodestream.storage import steps
from lodestream.storage.durability import explain_write_errors, make_folder, sync_path
from lodestream.storage.registers.protocol import Record, Version, require_nonce
from lodestream.storage.registers.seal import seal, unseal

KEPT_RECORDS: Final = 32
"""A writer whose record has been followed by more than this many cannot tell any more whether it was accepted."""

_STALE_TEMPORARY_S: Final = 3600.0
_RECORD_NAME: Final = re.compile(r"(\d{20})\.json")


class LocalRegister:
    """A register in a folder of a local disk (or a network disk with hard links).

    Guarantees: of any number of processes that replace the same version exactly one succeeds; a record is there whole
    or not at all, whenever a process is killed; an accepted record has reached the disk. Safe for use by many threads.

    Not guaranteed: anything on a file system whose hard links are not atomic.

    >>> import tempfile
    >>> register = LocalRegister(Path(tempfile.mkdtemp()))
    >>> version = register.cas(None, {"nonce": "a", "value": 1})
    >>> register.read() == ({"nonce": "a", "value": 1}, version)
    True
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> tuple[Record, Version] | None:
        """Return the record with the highest number and its version; None if the folder has none.

        Raises:
            StoreCorrupt: the file is torn or altered.
            StoreUnwritable: no rights to read it.
        """
        envelope = self._read_highest()
        return None if envelope is None else (envelope["record"], _name_version(envelope))

    def cas(self, expected_version: Version | None, record: Record) -> Version:
        """Create the record that follows ``expected_version``. See CasRegister.

        Raises:
            StoreUnwritable: no rights, no room, or the file system has no hard links.
        """
        require_nonce(record)
        current = self._read_highest()
        seen = None if current is None else _name_version(current)
        if seen != expected_version:
            raise _conflict(self.folder, expected_version, seen)
        number = 1 if current is None else current["number"] + 1
        envelope = {
            "number": number,
            "nonce": record["nonce"],
            "previous": None if current is None else current["nonce"],
            "record": record,
        }
        with explain_write_errors(self.folder):
            self._create(number, seal(envelope))
        self._confirm(number, record["nonce"], expected_version)
        self._trim(number)
        return _name_version(envelope)

    def close(self) -> None:
        """See CasRegister. No file is open between two calls."""

    def _read_highest(self) -> dict[str, Any] | None:
        with explain_write_errors(self.folder):
            while numbers := self._list_numbers():
                try:
                    return _read_envelope(self._path(numbers[-1]))
                except FileNotFoundError:
                    continue  # trimmed since the listing: many newer records exist
        return None

    def _list_numbers(self) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(match[1]) for name in names if (match := _RECORD_NAME.fullmatch(name)))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:020d}.json"

    def _create(self, number: int, body: bytes) -> None:
        # Written aside and linked in: the name appears with the whole content behind it, or not at all, and linking
        # fails if somebody else took the number.
        make_folder(self.folder)
        temporary = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            steps.reach("register.written")
            self._link(temporary, number)
        finally:
            temporary.unlink(missing_ok=True)
        sync_path(self.folder)
        steps.reach("register.linked")

    def _link(self, temporary: Path, number: int) -> None:
        try:
            os.link(temporary, self._path(number))
        except FileExistsError as error:
            raise _conflict(self.folder, str(number - 1), str(number)) from error
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise StoreUnwritable(
                    f"the file system of {self.folder} has no hard links ({error.strerror})",
                    "set store.uri to a folder on a local disk",
                ) from error
            raise

    def _confirm(self, number: int, nonce: str, expected_version: Version | None) -> None:
        # Between reading and linking this process may have slept so long that its number was used, followed and trimmed
        # away by others; then the link succeeded into the past.
        highest = self._list_numbers()[-1]
        if highest == number:
            return
        try:
            if _read_envelope(self._path(number + 1))["previous"] == nonce:
                return
        except FileNotFoundError as error:
            raise CommitStateUnknown(
                f"{self.folder} went from record {number} to {highest} before {number} could be confirmed",
                "read the pointer again and look whether your run is in it",
            ) from error
        self._path(number).unlink(missing_ok=True)
        raise _conflict(self.folder, expected_version, str(highest))

    def _trim(self, number: int) -> None:
        oldest_kept = number - KEPT_RECORDS + 1
        for old in self._list_numbers():
            if old < oldest_kept:
                self._path(old).unlink(missing_ok=True)
        horizon_s = time.time() - _STALE_TEMPORARY_S
        for path in self.folder.glob(".*.tmp"):  # left behind by killed writers
            try:
                if path.stat().st_mtime < horizon_s:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue


def _read_envelope(path: Path) -> dict[str, Any]:
    return unseal(
        path.read_bytes(),
        place=str(path),
        hint=f"move {path} away to go back to the record before it, then run again",
    )


def _name_version(envelope: dict[str, Any]) -> Version:
    # The number alone would come again once somebody has moved a torn record away.
    return f"{envelope['number']}:{envelope['nonce']}"


def _conflict(folder: Path, expected: Version | None, seen: Version | None) -> CommitConflict:
    return CommitConflict(
        f"another writer changed the store: {folder} is at record {_show(seen)}, not {_show(expected)}",
        "wait for the other run to end, then run the same command again",
    )


def _show(version: Version | None) -> str:
    return "none" if version is None else version.partition(":")[0]
