"""What Lance, obstore and the operating system raise about a store, turned into errors of the store.

Lance and Arrow wrap a failed read or write into whatever error is at hand, so its text has to be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lodestream.errors import CommitConflict, StoreCorrupt, StoreError, StoreUnreachable, StoreUnwritable
from lodestream.storage.durability import explain_write_error, free_bytes
from lodestream.storage.location import Location

_UNREACHABLE: Final = (
    "error sending request",
    "operation timed out",
    "connection closed",
    "connection reset",
    "retry_timeout",
    "503 Service Unavailable",
    "SlowDown",
)
_REFUSED: Final = ("403 Forbidden", "401 Unauthorized", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_NO_CREDENTIALS: Final = ("credential", "169.254.169.254")
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_REASON_CHARS: Final = 300


@contextmanager
def explain_errors(location: Location) -> Iterator[None]:
    """Turn what is raised about the files at ``location`` into errors of the store.

    Raises:
        StoreUnwritable: no rights, no room, a file in the way, or credentials that are refused.
        StoreUnreachable: an object store that gives no answer.
        CommitConflict: another writer committed meanwhile what this one's change does not go with.
        StoreCorrupt: a file is torn or gone.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        explained = _explain(location, error)
        if explained is None:
            raise
        raise explained from error


def _explain(location: Location, error: Exception) -> StoreError | None:
    text = str(error)
    is_foreign = not isinstance(error, (OSError, ValueError, RuntimeError))
    if is_foreign and not type(error).__module__.startswith("obstore"):
        return None
    if type(error).__name__ == "CommitConflictError" or "concurrent transaction" in text:
        return CommitConflict(
            f"another process writes to {location}", "wait for the other run to end, then run the same command again"
        )
    refused = _explain_local(location, error, text) if location.is_local else _explain_remote(location, text)
    if refused is not None:
        return refused
    if "Invalid user input" not in text and (isinstance(error, OSError) or is_foreign or _speaks_of_files(text)):
        room = f" ({free_bytes(location.path):,} bytes free)" if location.is_local else ""
        return StoreCorrupt(
            f"{location} cannot be read: {_shorten(text)}{room}",
            "restore the store from a backup, or move it away and run: lodestream run",
        )
    return None


def _explain_local(location: Location, error: Exception, text: str) -> StoreError | None:
    return explain_write_error(location.path, getattr(error, "errno", None), text)


def _explain_remote(location: Location, text: str) -> StoreError | None:
    if any(mark in text for mark in _NO_BUCKET):
        return StoreUnwritable(
            f"the bucket of {location} does not exist", "make the bucket, or set store.uri to one that exists"
        )
    if any(mark in text for mark in _REFUSED):
        return StoreUnwritable(
            f"{location} refuses access: {_shorten(text)}",
            "look at the credentials (AWS_ACCESS_KEY_ID and the like) and at the rights they have: read, write, delete",
        )
    if any(mark in text for mark in _NO_CREDENTIALS):
        return StoreUnwritable(
            f"there are no credentials for {location}: {_shorten(text)}",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or those of your cloud), or store.options",
        )
    if any(mark in text for mark in _UNREACHABLE):
        return StoreUnreachable(
            f"{location} gives no answer: {_shorten(text)}",
            "look at the network and at the endpoint in store.options, then run the same command again",
        )
    return None


def _speaks_of_files(text: str) -> bool:
    return "not found" in text.lower() or "LanceError(IO)" in text or "External error" in text


def _shorten(text: str) -> str:
    return text.splitlines()[0][:_REASON_CHARS] if text else "no reason given"
