"""A record as bytes with a checksum: what is torn or altered is noticed before it is believed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lodestream.errors import StoreCorrupt


def seal(values: dict[str, Any]) -> bytes:
    """Return ``values`` (JSON) and their checksum as one body."""
    body = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return json.dumps({"checksum": _checksum(body), "body": body}).encode()


def unseal(content: bytes, *, place: str, hint: str) -> dict[str, Any]:
    """Return what was sealed.

    Args:
        content: what ``seal`` returned.
        place, hint: for the error: what holds the content, and what to do when it is damaged.

    Raises:
        StoreCorrupt: it is not what ``seal`` returned.
    """
    try:
        sealed = json.loads(content)
        body = sealed["body"]
        if _checksum(body) != sealed["checksum"]:
            raise ValueError("checksum differs")
        values: dict[str, Any] = json.loads(body)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreCorrupt(f"{place} is torn or altered ({error or type(error).__name__})", hint) from error
    return values


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()
