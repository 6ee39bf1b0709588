"""A complete, error-free listing of the regular files below a folder. Links are followed inside the folder only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from lodestream.errors import SourceUnavailable


def walk_folder(root: bytes, *, follow_symlinks: bool, warnings: list[str]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Regular files below ``root``. A link is followed only to where no file was found by another way.

    Args:
        root: the folder.
        follow_symlinks: whether links are followed at all.
        warnings: a sentence is added for what is passed over.

    Raises:
        SourceUnavailable: a folder cannot be listed; an incomplete listing never looks like deleted documents.
    """
    real_root = os.path.realpath(root)
    seen_folders = {real_root}
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as listing:
                children = sorted(listing, key=lambda child: child.name)
        except OSError as error:
            raise SourceUnavailable(
                f"cannot list the folder {show_path(folder)}: {error.strerror}",
                "mend its rights or exclude it; nothing was taken for deleted",
            ) from None
        for child in children:
            if child.is_symlink() and not _may_follow(child.path, real_root, follow_symlinks, warnings):
                continue
            try:
                info = os.stat(child.path)
            except FileNotFoundError:
                continue
            except OSError as error:
                warnings.append(f"{show_path(child.path)}: {error.strerror}; passed over")
                continue
            if stat.S_ISDIR(info.st_mode):
                real = os.path.realpath(child.path)
                if real not in seen_folders:
                    seen_folders.add(real)
                    pending.append(child.path)
            elif stat.S_ISREG(info.st_mode):
                yield child.path, info


def show_path(path: bytes) -> str:
    """The path as text; bytes that are not UTF-8 are written as backslash escapes."""
    return path.decode("utf-8", "backslashreplace")


def _may_follow(path: bytes, real_root: bytes, follow_symlinks: bool, warnings: list[str]) -> bool:
    if not follow_symlinks:
        return False
    real = os.path.realpath(path)
    if not os.path.exists(real):
        warnings.append(f"{show_path(path)}: a link that leads nowhere; passed over")
        return False
    if os.path.commonpath([real, real_root]) != real_root:
        warnings.append(f"{show_path(path)}: a link that leaves the source's folder; passed over")
        return False
    return True
