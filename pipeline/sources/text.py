"""Bytes of a document to text."""

from __future__ import annotations

from typing import Final

from lodestream.errors import DocumentError

_ENCODING_HINT: Final = "convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 FILE"


def decode_text(body: bytes) -> str:
    """Decodes a document: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        DocumentError: the bytes are not text in one of these.
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
