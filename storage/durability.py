"""Making files last: neither Lance nor the operating system writes them to the disk before they are asked to.

A power cut after the pointer has swung must not leave it naming files that never reached the disk. So whatever a record
will name is flushed first, file by file and folder by folder.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from lodestream.errors import StoreUnwritable

_NUM_THREADS = 8  # flushes that wait at the same time share what the disk does

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)


def sync_path(path: Path) -> None:
    """Flush one file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_files(root: Path) -> frozenset[str]:
    """All files under ``root``, as paths relative to it. A file or folder that vanishes meanwhile is left out."""
    found = []
    for folder, _, names in os.walk(root):
        prefix = os.path.relpath(folder, root)
        found += [os.path.join(prefix, name) for name in names]
    return frozenset(found)


def sync_new_files(root: Path, known: frozenset[str]) -> frozenset[str]:
    """Flush the files under ``root`` that are not ``known``, and the folders that name them.

    Returns:
        All files that are there now: the ``known`` of the next call.
    """
    present = list_files(root)
    new = [root / name for name in present - known]
    if not new:
        return present
    # A new folder is itself a name in its parent: flush the whole line up to the root.
    folders = {parent for path in new for parent in path.parents if parent == root or root in parent.parents}
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        for paths in (new, folders):
            for _ in pool.map(_sync_unless_gone, paths):
                pass
    sync_path(root.parent)
    return present


def _sync_unless_gone(path: Path) -> None:
    with suppress(FileNotFoundError):  # the temporary file of another writer; what this one will name stays
        sync_path(path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, or find it there.

    Raises:
        StoreUnwritable: something else stands there, or there are no rights or no room.
    """
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write under ``path`` into StoreUnwritable."""
    try:
        yield
    except OSError as error:
        explained = explain_write_error(path, error.errno, str(error))
        if explained is None:
            raise
        raise explained from error


def explain_write_error(path: Path, number: int | None, text: str) -> StoreUnwritable | None:
    """Name the reason why ``path`` could not be written; None if ``number`` and ``text`` speak of something else.

    Lance reports the operating system's errors as text only, so the text is read where the number is missing.
    """
    if number in _NO_ROOM or "No space left" in text or "Disk quota exceeded" in text:
        return StoreUnwritable(
            f"no room to write the store at {path}: {free_bytes(path):,} bytes free",
            "free some space and run the same command again: what was staged is kept",
        )
    if number == errno.EFBIG or "File too large" in text:
        return StoreUnwritable(
            f"no room to write the store at {path}: a file may not grow any further",
            "raise the limit on the size of files (ulimit -f) and run the same command again: what was staged is kept",
        )
    if number in _NO_RIGHTS or "Permission denied" in text or "Read-only file system" in text:
        return StoreUnwritable(
            f"no rights to use the store at {path}", "change the folder's rights, or set store.uri to another folder"
        )
    if number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR) or "Not a directory" in text:
        return StoreUnwritable(
            f"{path} cannot be a store: a file stands in the way", "move it, or set store.uri to another folder"
        )
    return None


def free_bytes(path: Path) -> int:
    """Bytes free for this user on the disk that holds ``path`` (or its nearest parent that exists)."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
