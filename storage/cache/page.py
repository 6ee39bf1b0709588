"""One file of the disk tier: an Arrow IPC stream with LZ4, and behind it what is in it and how it can be trusted.

    stream    schema, then batches of rows of many entries each (any Arrow reader opens it)
    entries   one batch: what the page says of each entry (compact_rows.ENTRIES_SCHEMA), compressed alike
    footer    JSON: codec, width, and of each part its place, length and CRC-32
    tail      length and CRC-32 of the footer, and MAGIC

Nothing is parsed before its CRC is right: a torn, cut or altered page is DamagedPage, whatever it holds. A page appears
whole under its name or not at all.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa

from lodestream.storage.cache.compact_rows import (
    ENTRIES_SCHEMA,
    PageCodec,
    describe,
    rows_schema,
    shrink,
    widen,
)
from lodestream.storage.cache.entry import Entry

MAGIC: Final = b"LODEPG02"
BATCH_BYTES: Final = 64 << 10
SUFFIX: Final = ".page"

_TAIL: Final = struct.Struct("<II8s")
_READ_OPTIONS: Final = pa.ipc.IpcReadOptions(use_threads=False)  # a pool of threads costs more than such a batch
_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4")


class DamagedPage(Exception):
    """A page that is not what was written. It is a miss, and never leaves this package."""


class ForeignPage(DamagedPage):
    """A page of another width or codec: whole, and of no use here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEntry:
    """An entry with its class, its key and when it was made (seconds since 1970)."""

    kind: str
    key: bytes
    entry: Entry
    made_at_s: int


def encode_page(entries: Sequence[PageEntry], *, dim: int, codec: PageCodec) -> bytes:
    """The bytes of a page.

    Args:
        entries: those that ``can_shrink``.
        dim: width of the vectors.
        codec: how they are kept.
    """
    sink = pa.BufferOutputStream()
    parts = []
    schema = rows_schema(dim, codec)
    with pa.ipc.new_stream(sink, schema, options=_OPTIONS) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema))  # the schema goes out with the first
        for group in _group(entries):
            start = sink.tell()
            writer.write_batch(shrink([item.entry for item in group], dim, codec))
            parts.append({"start": start, "length": sink.tell() - start, "entries": len(group)})
    stream = sink.getvalue().to_pybytes()
    for part in parts:
        part["crc"] = zlib.crc32(stream[part["start"] : part["start"] + part["length"]])
    described = [describe(item.entry, codec) | _name(item) for item in entries]
    index = _serialize(pa.RecordBatch.from_pylist(described, schema=ENTRIES_SCHEMA))
    footer = {
        "codec": codec,
        "dim": dim,
        "parts": parts,
        "index": {"start": len(stream), "length": len(index), "crc": zlib.crc32(index)},
    }
    body = json.dumps(footer).encode()
    return b"".join([stream, index, body, _TAIL.pack(len(body), zlib.crc32(body), MAGIC)])


class Page:
    """A page on the disk, its entries known. Its file may vanish at any moment. Immutable."""

    def __init__(self, path: Path, footer: dict[str, Any], entries: pa.RecordBatch, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._codec: PageCodec = footer["codec"]
        self._dim = int(footer["dim"])
        self._entries = entries
        self._parts: list[dict[str, int]] = footer["parts"]
        self._places = _place(self._parts, entries.column("num_rows").to_pylist())

    @classmethod
    def open(cls, path: Path, *, dim: int, codec: PageCodec) -> Page:
        """Read what is in the page ``path``, and no rows.

        Raises:
            DamagedPage: it is not whole, or not of this width and codec.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            footer, size_bytes = _read_footer(file)
            if (footer["dim"], footer["codec"]) != (dim, codec):
                raise ForeignPage("of another width or codec")
            return cls(path, footer, _read_entries(file, footer), size_bytes)

    @property
    def keys(self) -> list[bytes]:
        """The keys, in the order of the entries."""
        keys: list[bytes] = self._entries.column("key").to_pylist()
        return keys

    def read(self, number: int) -> PageEntry:
        """Read the entry of this number.

        Raises:
            DamagedPage: its bytes are not those that were written.
            OSError: the file is gone, or cannot be read.
        """
        part, start = self._places[number]
        place = self._parts[part]
        with self.path.open("rb") as file:
            data = _read_part(file.fileno(), place["start"], place["length"], place["crc"])
        rows = _parse(data, rows_schema(self._dim, self._codec))
        described = {name: self._entries.column(name)[number].as_py() for name in ENTRIES_SCHEMA.names}
        entry = widen(rows.slice(start, described["num_rows"]), described, self._dim, self._codec)
        return PageEntry(kind=described["kind"], key=described["key"], entry=entry, made_at_s=described["made_at_s"])


def list_documents(path: Path) -> set[str]:
    """The documents that a page has rows of, whatever its width and codec; "" stands for texts.

    Raises:
        DamagedPage: it is not whole.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        footer, _ = _read_footer(file)
        return set(_read_entries(file, footer).column("doc_id").to_pylist())


def write_page(folder: Path, name: str, data: bytes) -> Path:
    """Write a page under ``folder``; it appears whole. Not flushed: a power cut may take or tear it, and that is seen.

    Raises:
        OSError: no room, no rights.
    """
    path = folder / f"{name}{SUFFIX}"
    temporary = folder / f".{name}.tmp"
    try:
        temporary.write_bytes(data)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _group(entries: Sequence[PageEntry]) -> list[list[PageEntry]]:
    """Entries in runs of about BATCH_BYTES: what is read and decoded for one of them."""
    groups: list[list[PageEntry]] = []
    held = BATCH_BYTES
    for item in entries:
        if held >= BATCH_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += int(item.entry.rows.nbytes)
    return groups


def _place(parts: Sequence[dict[str, int]], num_rows: Sequence[int]) -> list[tuple[int, int]]:
    """Of each entry the part that holds it, and its first row there."""
    places = []
    number = 0
    for index, part in enumerate(parts):
        start = 0
        for _ in range(part["entries"]):
            places.append((index, start))
            start += num_rows[number]
            number += 1
    return places


def _read_footer(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The footer of a page, and the page's bytes."""
    size_bytes = file.seek(0, os.SEEK_END)
    if size_bytes < _TAIL.size:
        raise DamagedPage("cut short")
    file.seek(size_bytes - _TAIL.size)
    length, crc, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != MAGIC or length + _TAIL.size > size_bytes:
        raise DamagedPage("no page, or cut short")
    footer: dict[str, Any] = json.loads(_read_part(file.fileno(), size_bytes - _TAIL.size - length, length, crc))
    return footer, size_bytes


def _read_entries(file: BinaryIO, footer: dict[str, Any]) -> pa.RecordBatch:
    index = footer["index"]
    data = _read_part(file.fileno(), index["start"], index["length"], index["crc"])
    return _parse(data, ENTRIES_SCHEMA)


def _read_part(descriptor: int, start: int, length: int, crc: int) -> bytes:
    data = os.pread(descriptor, length, start)
    if len(data) != length or zlib.crc32(data) != crc:
        raise DamagedPage("altered, or cut short")
    return data


def _name(item: PageEntry) -> dict[str, Any]:
    return {"kind": item.kind, "key": item.key, "made_at_s": item.made_at_s}


def _parse(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """One IPC message as a batch."""
    source = pa.py_buffer(schema.serialize().to_pybytes() + data)
    return pa.ipc.open_stream(source, options=_READ_OPTIONS).read_next_batch()


def _serialize(batch: pa.RecordBatch) -> bytes:
    """A batch as one IPC message, compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch.slice(0, 0))
        start = sink.tell()
        writer.write_batch(batch)
        end = sink.tell()
    data: bytes = sink.getvalue()[start:end].to_pybytes()
    return data
