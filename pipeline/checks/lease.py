"""Can writers agree here? The register that keeps the lease is asked to compare and swap, for real and for a moment."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lodestream.errors import CommitConflict, StoreNotFound, StoreUnwritable
from lodestream.pipeline.checks.result import CheckResult
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.storage.coordination import open_lease
from lodestream.storage.durability import explain_write_errors
from lodestream.storage.lease import read_lease
from lodestream.storage.location import Location
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.registers.opening import name_kind, open_register
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import CasRegister

NUM_SWAPS: Final = 5
# A renewal every third of a TTL must have time for an answer and for being tried again.
SWAPS_PER_TTL: Final = 30


def check_lease(loaded: LoadedConfig, find_nearest: Callable[[Path], Path]) -> CheckResult:
    """Swaps a record of its own, and looks whether a swap on an old condition is refused.

    Args:
        loaded: names the store and the server.
        find_nearest: returns the folder that exists above a path.
    """
    location, ttl_s = loaded.store_location, loaded.config.lease.ttl_s
    url = location.server or location.uri
    if name_kind(url) == "local":
        seconds = _try_folder(find_nearest(Path(url.removeprefix("file://"))))
    else:
        seconds = try_server(url, location, patience_s=ttl_s / 3)
    place = hide_password(location.server) if location.server else "with the store"
    detail = f"{place}: compare-and-swap in {seconds * 1000:.1f} ms, ttl {ttl_s:g} s; {_name_holder(location, ttl_s)}"
    if seconds * SWAPS_PER_TTL > ttl_s:
        return CheckResult(
            name="lease",
            level="warn",
            detail=detail,
            fix=f"set lease.ttl_s to at least {seconds * SWAPS_PER_TTL:.0f}, or a writer may lose the lease to a delay",
        )
    return CheckResult(name="lease", level="pass", detail=detail)


def require_compare_and_swap(register: CasRegister, place: str) -> float:
    """Swaps the record of ``register``, which must be empty, some times; returns the median time of one in seconds.

    Raises:
        StoreUnwritable: a swap on a condition that does not hold is accepted.
    """
    times: list[float] = []
    version, before = None, None
    for _ in range(NUM_SWAPS):
        began = time.perf_counter()
        before, version = version, register.cas(version, {"nonce": uuid.uuid4().hex})
        times.append(time.perf_counter() - began)
    try:
        register.cas(before, {"nonce": uuid.uuid4().hex})
    except CommitConflict:
        return statistics.median(times)
    raise StoreUnwritable(
        f"{place} ignores the conditions of conditional writes: two writers could publish at once",
        "use an object store that honours If-Match, or a server: lease.url",
    )


def _try_folder(nearest: Path) -> float:
    with (
        explain_write_errors(nearest),
        tempfile.TemporaryDirectory(dir=nearest, prefix=".lodestream-check-") as folder,
    ):
        return require_compare_and_swap(LocalRegister(Path(folder) / "lease"), str(nearest))


def try_server(url: str, location: Location, *, patience_s: float) -> float:
    """Swaps a record at ``url``, removes it, and returns the median time of a swap in seconds.

    Raises:
        StoreUnreachable, StoreUnwritable, ConfigError: it cannot be used.
    """
    options = RegisterOptions(timeout_s=patience_s, give_up_after_s=patience_s, storage=location.options)
    register = open_register("auto", url, f"check-{uuid.uuid4().hex}", options)
    from lodestream.storage.registers.remote import RemoteRegister  # needs an extra, which open_register has asked for

    assert isinstance(register, RemoteRegister)
    try:
        seconds = require_compare_and_swap(register, hide_password(url))
        register.remove()
        return seconds
    finally:
        register.close()


def _name_holder(location: Location, ttl_s: float) -> str:
    try:
        found = read_lease(open_lease(location, ttl_s=ttl_s))
    except StoreNotFound:
        found = None
    if found is None:
        return "never held"
    record = found[0]
    return "free" if record.released else f"held by {record.holder} (epoch {record.epoch})"
