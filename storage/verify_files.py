"""Looking at the files of a table: are those there that its versions name, whole, and can they be read?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lodestream.storage.debris import find_debris, total_bytes
from lodestream.storage.findings import Finding, list_some
from lodestream.storage.table import Table

if TYPE_CHECKING:
    from lance import LanceFragment


def is_read_failure(error: BaseException) -> bool:
    """Whether a torn file may be behind ``error``: Lance raises what is at hand, and panics on some."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def say_why(error: BaseException) -> str:
    """Return the first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_table_files(table: Table) -> Iterator[Finding]:
    """Yield what is wrong with the files that a version names: gone, or not as long as they were written."""
    sizes = {item.name: item.size_bytes for item in table.location.list_objects()}
    wanted = {row["path"]: row["type"] for row in _tracked(table) if row["version"] == table.version}
    lengths = {f"data/{file.path}": file.file_size_bytes for part in table.fragments() for file in part.data_files()}
    for path, kind in sorted(wanted.items()):
        place = f"{table.folder}/{path}"
        if path not in sizes:
            if kind != "transaction file":
                yield _file_finding("file-gone", f"{place} is gone", place, kind)
        elif lengths.get(path) not in (None, sizes[path]):
            what = f"{place} has {sizes[path]:,} bytes; {lengths[path]:,} were written"
            yield _file_finding("file-cut", what, place, kind)
    yield from _check_index_files(table, sizes)


def _check_index_files(table: Table, sizes: Mapping[str, int]) -> Iterator[Finding]:
    # Lance lists the files of an index from its folder, so that one that is gone is not among them.
    for index in table.dataset.describe_indices():
        for segment in index.segments:
            folder = f"_indices/{segment.uuid}/"
            size_bytes = sum(size for path, size in sizes.items() if path.startswith(folder))
            if segment.size_bytes not in (None, size_bytes):
                place = f"{table.folder}/{folder}"
                what = f"{place} has {size_bytes:,} bytes; {segment.size_bytes:,} were written"
                yield _file_finding("file-cut", what, place, "index file")


def find_unreadable(table: Table, *, broken: set[str], deep: bool) -> tuple[list[Finding], list[LanceFragment]]:
    """Read every file: every column if ``deep``, else all but the vectors.

    Args:
        table: the table.
        broken: places of files that are known to be broken; they are not read.
        deep: whether to read the vectors as well.

    Returns:
        What cannot be read, and the parts of the table that can.
    """
    findings, sound = [], []
    columns = [column for column in table.schema.names if deep or column != "codes"]
    for part in table.fragments():
        places = [f"{table.folder}/data/{file.path}" for file in part.data_files()]
        if broken & {*places, *_deletion_places(table, part)}:
            continue
        try:
            for _ in part.to_batches(columns=columns):
                pass
        except BaseException as error:
            if not is_read_failure(error):
                raise
            what = f"{places[0]} cannot be read: {say_why(error)}"
            findings.append(_file_finding("file-torn", what, places[0], "data file"))
        else:
            sound.append(part)
    return findings, sound


def list_broken_parts(table: Table, findings: tuple[Finding, ...]) -> list[int]:
    """Return the numbers of the table's parts whose files are among the findings that want a file dropped."""
    broken = {finding.place for finding in findings if finding.mend == "drop file"}
    return [
        part.fragment_id
        for part in table.fragments()
        if broken
        & {*(f"{table.folder}/data/{file.path}" for file in part.data_files()), *_deletion_places(table, part)}
    ]


def check_debris(table: Table, *, sweep_after: timedelta) -> Iterator[Finding]:
    """Yield what is there of files that no version names: those of a run at work are a note, older ones are not."""
    horizon = datetime.now(UTC) - sweep_after
    debris = find_debris(table)
    for is_old in (True, False):
        chosen = [item for item in debris if (item.modified_at <= horizon) == is_old]
        if chosen:
            age = "longer ago than upkeep.sweep_after" if is_old else "by a run that is at work or was killed"
            yield Finding(
                kind="debris",
                what=f"{len(chosen)} files ({total_bytes(chosen):,} bytes) belong to no version, written {age}: "
                + list_some([item.name for item in chosen]),
                place=table.folder,
                mend="sweep",
                is_note=not is_old,
            )


def _file_finding(kind: str, what: str, place: str, file_kind: str) -> Finding:
    if file_kind == "index file":
        return Finding(kind=kind, what=what, place=place, mend="rebuild indexes")
    return Finding(kind=kind, what=what, place=place, mend="none" if file_kind == "manifest" else "drop file")


def _deletion_places(table: Table, part: LanceFragment) -> list[str]:
    path = part.deletion_file()
    return [f"{table.folder}/{path}"] if path else []


def _tracked(table: Table) -> Iterator[Mapping[str, Any]]:
    reader: pa.RecordBatchReader = table.dataset.tracked_files(min_version=table.version)
    for batch in reader:
        yield from batch.to_pylist()
