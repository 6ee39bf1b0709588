"""A folder of text files as a source: a complete listing, then one read per file.

Listing and reading are apart, so that a listing (names, sizes, times) is cheap and reads run where there is room for
them. A listing is complete or it fails: a folder that cannot be read never looks like deleted documents.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pathspec

from lodestream.actors.segment import text_format_of
from lodestream.errors import DocumentError, SourceContract, SourceUnavailable
from lodestream.pipeline.config import FilesSource

NO_HASH: Final = bytes(32)
"""Content hash of a document whose bytes were never read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One listed file: what is known without opening it."""

    doc_id: str
    source: str
    path: bytes
    size_bytes: int
    mtime_ns: int
    max_bytes: int

    @property
    def uri(self) -> str:
        """The path as text; bytes that are not UTF-8 are written as backslash escapes."""
        return self.path.decode("utf-8", "backslashreplace")

    @property
    def source_version(self) -> str:
        return f"{self.mtime_ns:x}-{self.size_bytes:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Every file of a source that its patterns choose, by doc_id, and what was passed over with a warning."""

    entries: tuple[FileEntry, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileText:
    """One file's text. ``text[i]`` is the i-th character of the decoded file, without a byte order mark."""

    text: str
    content_hash: bytes
    text_format: str


def list_files(name: str, source: FilesSource, folder: Path, *, prefix_ids: bool) -> Listing:
    """Lists the files of a source.

    Args:
        name: the source's name in the configuration.
        source: its settings; a relative path starts from ``folder``.
        folder: the configuration file's folder.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.

    Raises:
        SourceContract: the path does not exist or is no folder.
        SourceUnavailable: a folder below it cannot be listed; nothing is taken for deleted.
    """
    root = (folder / Path(source.path).expanduser()).resolve()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise SourceContract(
            f"sources.{name}.path: {root} {what}", f"set sources.{name}.path in lodestream.toml to a folder"
        )
    include = pathspec.PathSpec.from_lines("gitignore", source.include)
    exclude = pathspec.PathSpec.from_lines("gitignore", source.exclude)
    warnings: list[str] = []
    entries = []
    for path, info in _walk(os.fsencode(root), follow_symlinks=source.follow_symlinks, warnings=warnings):
        relative = os.path.relpath(path, os.fsencode(root))
        pattern_name = relative.decode("utf-8", "backslashreplace")
        if include.match_file(pattern_name) and not exclude.match_file(pattern_name):
            entries.append(
                FileEntry(
                    doc_id=(f"{name}/" if prefix_ids else "") + _name_document(relative),
                    source=name,
                    path=path,
                    size_bytes=info.st_size,
                    mtime_ns=info.st_mtime_ns,
                    max_bytes=source.max_document_bytes,
                )
            )
    entries.sort(key=lambda entry: entry.doc_id)
    return Listing(entries=tuple(entries), warnings=tuple(warnings))


def read_file(entry: FileEntry) -> FileText:
    """Reads and decodes one file.

    Raises:
        DocumentError: it vanished, cannot be read, is too large, is binary, or is not UTF-8 (or UTF-16 with a mark).
    """
    if entry.size_bytes > entry.max_bytes:
        raise DocumentError(
            f"{entry.size_bytes} bytes, more than max_document_bytes = {entry.max_bytes}",
            f"raise sources.{entry.source}.max_document_bytes or split the file",
        )
    try:
        with open(entry.path, "rb") as file:
            body = file.read(entry.max_bytes + 1)
    except FileNotFoundError:
        raise DocumentError("vanished between listing and reading", "the next run looks again") from None
    except OSError as error:
        raise DocumentError(f"cannot be read: {error.strerror}", f"check the rights of {entry.uri}") from None
    if len(body) > entry.max_bytes:
        raise DocumentError(
            f"grew past max_document_bytes = {entry.max_bytes} while it was read",
            f"raise sources.{entry.source}.max_document_bytes or split the file",
        )
    return FileText(
        text=decode_text(body), content_hash=hashlib.sha256(body).digest(), text_format=text_format_of(entry.uri)
    )


def decode_text(body: bytes) -> str:
    """Decodes a document: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        DocumentError: the bytes are not text in one of these; ``content_hash`` is not lost by it (see hash_file).
    """
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return body.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DocumentError(f"begins like UTF-16 but is not at byte {error.start}", _ENCODING_HINT) from None
    nul = body.find(b"\0")
    if nul >= 0:
        raise DocumentError(f"binary: a NUL byte at offset {nul}", "exclude it, or convert it to text")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = body[error.start]
        raise DocumentError(f"not UTF-8: byte 0x{byte:02x} at offset {error.start}", _ENCODING_HINT) from None


_ENCODING_HINT: Final = "convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 FILE"


def hash_file(entry: FileEntry) -> bytes:
    """The content hash of a file that could not be used, NO_HASH where its bytes cannot be had at all."""
    if entry.size_bytes > entry.max_bytes:
        return hashlib.sha256(f"too large {entry.source_version}".encode()).digest()
    try:
        with open(entry.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return NO_HASH


def _walk(root: bytes, *, follow_symlinks: bool, warnings: list[str]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Regular files below ``root``. A link is followed only to where no file was found by another way."""
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
                f"cannot list the folder {_show(folder)}: {error.strerror}",
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
                warnings.append(f"{_show(child.path)}: {error.strerror}; passed over")
                continue
            if stat.S_ISDIR(info.st_mode):
                real = os.path.realpath(child.path)
                if real not in seen_folders:
                    seen_folders.add(real)
                    pending.append(child.path)
            elif stat.S_ISREG(info.st_mode):
                yield child.path, info


def _may_follow(path: bytes, real_root: bytes, follow_symlinks: bool, warnings: list[str]) -> bool:
    if not follow_symlinks:
        return False
    real = os.path.realpath(path)
    if not os.path.exists(real):
        warnings.append(f"{_show(path)}: a link that leads nowhere; passed over")
        return False
    if os.path.commonpath([real, real_root]) != real_root:
        warnings.append(f"{_show(path)}: a link that leaves the source's folder; passed over")
        return False
    return True


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _name_document(relative: bytes) -> str:
    """The relative path; a name that is not UTF-8 gets escapes and a short hash, so that no two names become one."""
    try:
        return relative.decode("utf-8")
    except UnicodeDecodeError:
        digest = hashlib.blake2b(relative, digest_size=4).hexdigest()
        return f"{relative.decode('utf-8', 'backslashreplace')}#{digest}"
