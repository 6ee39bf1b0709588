"""Taking documents out of a folder of pages, while the endpoints that write them may be running.

A page that holds rows of a document goes whole: the other entries in it are misses, and come again. Then a mark is
left, with the time and no names, by which every running endpoint of the folder gives up what it holds in memory.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lodestream.storage.cache.page import SUFFIX, DamagedPage, list_documents

LOCK: Final = ".lock"

_MARK: Final = ".purged"
_PATIENCE_S: Final = 5.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePurge:
    """What became of a folder's pages: ``num_removed`` went; ``failures`` says of each that is left why."""

    folder: str
    num_removed: int
    failures: tuple[str, ...]


def purge_pages(folder: Path, doc_ids: Collection[str]) -> PagePurge:
    """Remove the pages that hold rows of one of the documents, and those that cannot be read and so might.

    A process that has such a page open finds it gone, which is a miss. Waits some seconds for the folder's lock, and
    goes on without it: who holds it for longer is stopped, and its unfinished page goes too.

    Args:
        folder: of ``cache.folder``; one that is not there holds nothing.
        doc_ids: the documents.
    """
    failures: list[str] = []
    num_removed = 0
    if folder.is_dir():
        try:
            with _hold_folder(folder):
                for path in sorted(folder.iterdir()):
                    try:
                        num_removed += _purge_file(path, frozenset(doc_ids))
                    except OSError as error:
                        failures.append(f"{path.name}: {error.strerror}")
                (folder / _MARK).write_text(str(time.time_ns()))
        except OSError as error:
            failures.append(f"{folder}: {error.strerror}")
    return PagePurge(folder=str(folder), num_removed=num_removed, failures=tuple(failures))


def read_mark(folder: Path) -> str:
    """What the last purge of the folder left; "" where there was none. It differs after each."""
    try:
        return (folder / _MARK).read_text()
    except OSError:
        return ""


def _purge_file(path: Path, doc_ids: frozenset[str]) -> bool:
    """Whether the file was removed."""
    if path.suffix == SUFFIX:
        try:
            if doc_ids.isdisjoint(list_documents(path)):
                return False
        except FileNotFoundError:
            return False
        except (DamagedPage, ValueError, KeyError):
            pass
    elif path.suffix != ".tmp":
        return False
    path.unlink(missing_ok=True)
    return True


@contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("ab") as file:
        give_up_at_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at_s:
                    break
                time.sleep(_POLL_S)
        yield  # closing the file gives the lock back
