"""Load over HTTP by wrk, a generator in C that takes a small part of a core: apt-get install wrk."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNIQUE = "UNIQUE_TEXT"
SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request; ``body`` is sent as JSON. ``UNIQUE`` in it stands for a word that no other request has."""

    path: str
    body: Any = None

    def line(self) -> str:
        """The request as load.lua reads it."""
        body = "" if self.body is None else json.dumps(self.body)
        return f"{'POST' if body else 'GET'}\t{self.path}\t{body}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of one burst of load. ``failed``: statuses of 400 and more, broken connections, timeouts."""

    requests: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    bytes: int
    failed: int

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


def run_load(url: str, requests: Sequence[HttpRequest], *, seconds: int, connections: int = 1, token: str = "") -> Load:
    """Sends the requests in turn, over so many connections, each with one request under way at a time."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("this benchmark needs wrk: apt-get install wrk")
    headers = [f"Authorization=Bearer {token}"] if token else []
    with tempfile.NamedTemporaryFile("w", suffix=".requests") as file:
        file.writelines(request.line() for request in requests)
        file.flush()
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(SCRIPT), url]
        done = subprocess.run([*command, "--", file.name, *headers], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    values = json.loads(line.removeprefix("RESULT "))
    failed = values.pop("bad_statuses") + values.pop("broken") + values.pop("timeouts")
    return Load(**values, failed=failed)
