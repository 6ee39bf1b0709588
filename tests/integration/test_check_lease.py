"""``lodestream check`` asks the register that keeps the lease to compare and swap."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodestream.errors import StoreUnwritable
from lodestream.pipeline.checks import lease as check_module
from lodestream.pipeline.checks.check import _nearest_folder
from lodestream.pipeline.checks.lease import check_lease, require_compare_and_swap
from lodestream.pipeline.checks.result import CheckResult
from lodestream.storage.location import Location
from lodestream.storage.registers.local import LocalRegister
from lodestream.storage.registers.opening import RegisterKind, open_register
from lodestream.storage.registers.protocol import Record, Version
from lodestream.storage.store import FeatureStore
from tests.support.registers import KINDS, find_server
from tests.support.servers import Server, describe_s3, make_bucket, run_redis
from tests.support.store_rows import DIM, take_lease
from tests.support.workspace import Workspace


def check(workspace: Workspace, *settings: str) -> CheckResult:
    return check_lease(workspace.load(*settings), _nearest_folder)


@pytest.mark.parametrize("kind", KINDS)
def test_back_ends(request: pytest.FixtureRequest, tmp_path: Path, kind: RegisterKind) -> None:
    """Before the first run and after it; what was tried out is gone afterwards."""
    workspace = Workspace.create(tmp_path / "work")
    settings: tuple[str, ...] = ()
    if kind == "object":
        server = find_server(request, "s3")
        options = [
            f"store.options.{name}={value}" for name, value in describe_s3(server).items() if name != "allow_http"
        ]
        settings = (f"store.uri=s3://{make_bucket(server)}/store", *options)
    elif kind != "local":
        settings = (f"lease.url={find_server(request, kind).url}",)
    first = check(workspace, *settings)
    assert first.level == "pass" and "compare-and-swap in" in first.detail and "never held" in first.detail
    location = workspace.load(*settings).store_location
    lease = take_lease(FeatureStore.open_or_create(location, dim=DIM))
    assert "held by a test on" in check(workspace, *settings).detail
    lease.release()
    assert check(workspace, *settings).detail.endswith("; free")
    assert left_behind(location) == []


def left_behind(location: Location) -> list[str]:
    if location.is_local:
        return [path.name for path in location.path.parent.rglob("*check*")]
    return [item.name for item in location.list_objects() if "check" in item.name]


def test_removed_records_are_gone(redis_server: Server) -> None:
    register = open_register("redis", redis_server.url, "removed")
    register.cas(None, {"nonce": "a"})
    register.remove()  # type: ignore[attr-defined]
    register.remove()  # type: ignore[attr-defined]
    assert register.read() is None


def test_unreachable_server(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work", {"a.md": "Some text."})
    with run_redis() as server:
        url = server.url.replace("redis://", "redis://me:secret@")
    done = workspace.command("check", "--set", f"lease.url={url}", "--set", "lease.ttl_s=1.0")
    assert done.returncode == 1
    assert "fail  lease: redis://me:***@" in done.stdout and "cannot be reached" in done.stdout
    assert "secret" not in done.stdout + done.stderr and "fix: look whether the server runs" in done.stdout


def test_slow_server_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.create(tmp_path / "work")
    monkeypatch.setattr(check_module, "require_compare_and_swap", lambda register, place: 0.9)
    found = check(workspace)
    assert found.level == "warn" and "lease.ttl_s to at least 27" in found.fix


class CarelessRegister(LocalRegister):
    """Compares nothing, like an object store that ignores If-Match."""

    def cas(self, expected_version: Version | None, record: Record) -> Version:
        found = self.read()
        return super().cas(found[1] if found else None, record)


def test_register_that_compares_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="two writers could publish at once"):
        require_compare_and_swap(CarelessRegister(tmp_path / "lease"), "here")
