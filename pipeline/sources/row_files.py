"""A folder of files whose rows are documents: Parquet, or JSON Lines.

A file is scanned where its status differs from the cursor's; of its rows, those whose hash differs are documents that
changed. Rows of files that are as they were count as listed without being looked at. A file that cannot be read as a
whole is set aside under its own name, and its rows stay as they were.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pathspec
import pyarrow as pa

from lodestream.errors import DocumentError, SourceContract
from lodestream.pipeline.config.sources import JsonLinesSource, ParquetSource
from lodestream.pipeline.sources.folder import show_path, walk_folder
from lodestream.pipeline.sources.formats import describe_failure, reading_version
from lodestream.pipeline.sources.json_lines import scan_lines
from lodestream.pipeline.sources.parquet_rows import check_columns, make_fragment, scan_fragment
from lodestream.pipeline.sources.protocol import (
    Cursor,
    KnownDocument,
    KnownStates,
    Observations,
    SourceChanges,
    SourceCheck,
)
from lodestream.pipeline.sources.row_file_reader import FAILED, RowFileReader
from lodestream.pipeline.sources.row_texts import RowTexts
from lodestream.pipeline.sources.rows import RawRow, Row, RowNames, find_differences

RACY_NS: Final = 2_000_000_000
MAX_FILES_IN_CURSOR: Final = 1000
"""With more files the cursor holds their joint hash only, and a change of one has all of them scanned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A listed file: its name below the folder, its path, what it is compared by; ``is_settled`` where it was not
    written just now."""

    name: str
    path: str
    status: str
    is_settled: bool
    size_bytes: int


class RowFiles:
    """The rows of the Parquet or JSON Lines files of a folder. Not for several threads."""

    def __init__(self, name: str, config: ParquetSource | JsonLinesSource, folder: Path, *, prefix_ids: bool) -> None:
        """Args:
        name: the source's name in the configuration.
        config: its settings; a relative path starts from ``folder``.
        folder: the configuration file's folder.
        prefix_ids: True where there are several sources: doc_ids then begin with ``name/``.
        """
        self.name = name
        self._config = config
        self._root = (folder / Path(config.path).expanduser()).resolve()
        self._texts = RowTexts(source=name, text_format=config.text_format, max_bytes=config.max_document_bytes)
        self._names = RowNames(source=name, prefix=f"{name}/" if prefix_ids else "", place=f"{self._root}#")
        self._include = pathspec.PathSpec.from_lines("gitignore", config.include)
        self._exclude = pathspec.PathSpec.from_lines("gitignore", config.exclude)

    def incarnation(self) -> str:
        """The folder itself, and how its rows are read: another folder, column or format, and all is compared."""
        self._require_folder()
        config = self._config
        reading = (
            f"{config.id_column}, {config.text_column}, {config.text_format}, {reading_version(config.text_format)}"
        )
        return f"{config.kind}:{self._root}:{self._root.stat().st_ino}:{reading}"

    def changes(self, since: Cursor | None, known: KnownStates, *, retry: Collection[str] = ()) -> SourceChanges:
        """See ``Source.changes``.

        Raises:
            SourceContract: the path is no folder.
            SourceUnavailable: a folder below it cannot be listed.
        """
        warnings: list[str] = []
        files = self._list(warnings)
        cursor = _write_cursor(files)
        observations = Observations(mode="files", warnings=tuple(warnings))
        if since is not None and not retry and since["digest"] == cursor["digest"] and cursor["digest"]:
            return SourceChanges(upserts=(), num_seen=0, cursor=cursor, observations=observations)
        before = {} if since is None else known.load()
        same = {} if since is None else since["files"]
        asked = {before[doc_id].state.object_id for doc_id in retry if doc_id in before}
        # Why a row failed may lie in another file: the one with the same id is gone.
        asked |= {document.state.object_id for document in before.values() if document.state.version.startswith(FAILED)}
        kept = {file.name for file in files if same.get(file.name) == file.status and file.name not in asked}
        rows = self._scan(file for file in files if file.name not in kept)
        listed = _rows_of(before, kept)
        if listed & {self._names.doc_id(row.row_id) for row in rows}:
            # A row has come up in another file: which of the two counts depends on all files.
            rows, listed = self._scan(files), set()
        found = find_differences(rows, self._names, before, retry=retry)
        unreadable = {row.object_id for row in rows if row.row_id == row.object_id}
        listed |= found.doc_ids | _rows_of(before, unreadable)
        return SourceChanges(
            upserts=found.candidates,
            num_seen=len(found.doc_ids),
            listed=frozenset(listed),
            cursor=cursor,
            observations=observations,
        )

    def reader(self) -> RowFileReader:
        """What reads the rows."""
        return RowFileReader(source=self.name, config=self._config)

    def check(self) -> SourceCheck:
        """Lists the folder; warns where nothing is chosen."""
        warnings: list[str] = []
        files = self._list(warnings)
        size_bytes = sum(file.size_bytes for file in files)
        detail = f"{len(files)} files, {size_bytes / 2**20:.1f} MiB in {self._root}; their rows are compared by hash"
        if not files:
            return SourceCheck(level="warn", detail=detail, fix=f"check sources.{self.name}.path and include")
        if warnings:
            return SourceCheck(
                level="warn", detail=detail, fix=f"mend or exclude: {warnings[0]}", size_bytes=size_bytes
            )
        return SourceCheck(level="pass", detail=detail, size_bytes=size_bytes)

    def _list(self, warnings: list[str]) -> list[_File]:
        self._require_folder()
        root = os.fsencode(self._root)
        now_ns = time.time_ns()
        files = []
        for path, info in walk_folder(root, follow_symlinks=True, warnings=warnings):
            name = show_path(os.path.relpath(path, root))
            if self._include.match_file(name) and not self._exclude.match_file(name):
                status = f"{info.st_size:x}-{info.st_mtime_ns:x}-{info.st_ctime_ns:x}-{info.st_ino:x}"
                files.append(
                    _File(
                        name=name,
                        path=os.fsdecode(path),
                        status=status,
                        is_settled=abs(now_ns - info.st_mtime_ns) >= RACY_NS,
                        size_bytes=info.st_size,
                    )
                )
        return sorted(files, key=lambda file: file.name)

    def _require_folder(self) -> None:
        if not self._root.is_dir():
            what = "is not a folder" if self._root.exists() else "does not exist"
            raise SourceContract(
                f"sources.{self.name}.path: {self._root} {what}",
                f"set sources.{self.name}.path in lodestream.toml to a folder",
            )

    def _scan(self, files: Iterable[_File]) -> list[Row]:
        """The rows of files, each id once: of two rows with one id the first counts, and the other fails."""
        rows: list[Row] = []
        places: dict[str, str] = {}
        for file in files:
            in_file: dict[str, str] = {}
            try:
                found = [self._take(file, raw, places, in_file) for raw in self._scan_file(file)]
            except (OSError, pa.ArrowException, DocumentError) as error:
                reason = describe_failure(error) if isinstance(error, DocumentError) else f"cannot be read: {error}"
                rows.append(self._fail(file, file.name, file.status.encode(), reason))
                continue
            rows += found
            places |= in_file
        return rows

    def _scan_file(self, file: _File) -> Iterator[RawRow]:
        config = self._config
        if config.kind == "jsonl":
            return scan_lines(file.path, config.id_column, config.text_column)
        fragment = make_fragment(file.path)
        check_columns(fragment.physical_schema, config.id_column, config.text_column)
        return scan_fragment(fragment, config.id_column, config.text_column)

    def _take(self, file: _File, raw: RawRow, places: Mapping[str, str], in_file: dict[str, str]) -> Row:
        where = f"{file.name}:{raw.place[-1] if self._config.kind == 'jsonl' else '.'.join(map(str, raw.place))}"
        if raw.failure:
            return self._fail(file, where, raw.text, raw.failure)
        if raw.id is None or raw.id == "":
            return self._fail(file, where, raw.text, f"no id in the column {self._config.id_column}; give the row one")
        row_id = str(raw.id)
        first = places.get(row_id) or in_file.get(row_id)
        if first:
            return self._fail(file, where, raw.text, f"the id {row_id!r} is that of {first}, which counts; rename one")
        in_file[row_id] = where
        content_hash = self._texts.hash_text(raw.text)
        return Row(
            row_id=row_id,
            version=content_hash.hex()[:16],
            size_bytes=len(raw.text),
            content_hash=content_hash,
            locator=(file.path, file.status, raw.place),
            object_id=file.name,
        )

    def _fail(self, file: _File, row_id: str, content: bytes, reason: str) -> Row:
        content_hash = hashlib.sha256(content + reason.encode("utf-8", "backslashreplace")).digest()
        return Row(
            row_id=row_id,
            version=f"{FAILED} {content_hash.hex()[:16]}",
            size_bytes=len(content),
            content_hash=content_hash,
            locator=(FAILED, reason),
            object_id=file.name,
        )


def _rows_of(known: Mapping[str, KnownDocument], files: Collection[str | None]) -> set[str]:
    return {doc_id for doc_id, document in known.items() if document.state.object_id in files}


def _write_cursor(files: Iterable[_File]) -> Cursor:
    """What the next listing is compared with; a file that was written just now is left out, and so scanned again."""
    files = list(files)
    digest = hashlib.sha256("\n".join(f"{file.name} {file.status}" for file in files).encode()).hexdigest()
    settled = {file.name: file.status for file in files if file.is_settled}
    return {
        "digest": digest if len(settled) == len(files) else "",
        "files": settled if len(settled) <= MAX_FILES_IN_CURSOR else {},
    }
