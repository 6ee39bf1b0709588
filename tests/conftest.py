"""What every test stands on: a known environment, and one hypothesis profile everywhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.servers import (  # noqa: F401  fixtures for every test
    etcd_server,
    postgres_server,
    postgres_url,
    redis_server,
    s3_bucket,
    s3_options,
    s3_server,
)

# The same profile on every machine. No deadline: the clock of a busy machine says nothing about the code.
settings.register_profile("lodestream", deadline=None, print_blob=True)
settings.load_profile("lodestream")

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "passive",
    "NO_COLOR": "1",
}


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is collected: no setting of the caller's shell reaches a test, and Ray has its own folder."""
    for variable in [name for name in os.environ if name.startswith("LODESTREAM__")]:
        del os.environ[variable]
    os.environ.update(_ENVIRONMENT)
    # Short, for Ray's sockets lie below it and their paths must stay under 108 bytes.
    ray_folder = Path(tempfile.mkdtemp(prefix="ls", dir="/tmp"))
    (ray_folder / "ray").mkdir()
    os.environ["RAY_TMPDIR"] = str(ray_folder)
    config.add_cleanup(lambda: shutil.rmtree(ray_folder, ignore_errors=True))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def streams_folder() -> Path:
    """Folder with streams of real edits; tests that need it are skipped without."""
    folder = os.environ.get("LODESTREAM_STREAMS", "")
    if not folder:
        pytest.skip("LODESTREAM_STREAMS does not name a folder with streams of real edits")
    return Path(folder)
