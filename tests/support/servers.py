"""Real servers for the tests: Redis, etcd, PostgreSQL and an object store that speaks S3.

Each listens on a free port of the loopback device, keeps its data in a temporary folder, and ends with the test session
(also when that is killed). A server that is not installed fails the test where CI is set, and skips it elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
S3_KEY, S3_SECRET = "test-key", "test-secret"  # moto takes any


@dataclass(kw_only=True)
class Server:
    """A server process.

    ``url`` is what clients are given; ``stop`` and ``start`` keep port and data (but for the object store, which has
    its objects in memory).
    """

    name: str
    url: str
    port: int
    command: Sequence[str]
    folder: Path
    is_ready: Callable[[], bool]
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts the server and returns when it answers."""
        log = self.folder / "log.txt"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )
        give_up_at = time.monotonic() + START_LIMIT_S
        while not self.is_ready():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > give_up_at:
                self.kill()
                what = "ended" if ended else f"gave no answer for {START_LIMIT_S:.0f} s"
                raise RuntimeError(f"{self.name} {what}:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server in an orderly way."""
        if self.process is None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """Ends the server at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def run_redis() -> Iterator[Server]:
    """A Redis server that keeps nothing on disk."""
    program = require_program("redis-server", "redis-server")
    port = find_free_port()
    with make_folder("redis") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
        yield from _serve(
            name="redis-server",
            url=f"redis://127.0.0.1:{port}/0",
            port=port,
            command=[*_die_with_parent(), program, *options],
            folder=folder,
        )


@contextlib.contextmanager
def run_etcd(*, scheme: str = "http", **more: str) -> Iterator[Server]:
    """An etcd cluster of one; ``more`` are options of its own, with underscores."""
    program = require_program("etcd", "etcd-server")
    port, peer_port = find_free_port(), find_free_port()
    url, peer = f"{scheme}://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    with make_folder("etcd") as folder:
        options = {
            "data-dir": str(folder / "data"),
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        command = [*_die_with_parent(), program, *(f"--{name}={value}" for name, value in options.items())]
        yield from _serve(name="etcd", url=url, port=port, command=command, folder=folder)


@contextlib.contextmanager
def run_postgres() -> Iterator[Server]:
    """A PostgreSQL cluster with the superuser ``lodestream``, who needs no password, and an empty database.

    Logical decoding is on. PostgreSQL refuses to run as root; then it runs as the user that its package made.
    """
    programs = find_postgres_programs()
    as_user: list[str] = []
    if os.getuid() == 0:
        user = _find_user("postgres", "nobody")
        as_user = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
    port = find_free_port()
    with make_folder("postgres") as folder:
        if as_user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data = folder / "data"
        initialise = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "lodestream",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]
        done = subprocess.run(
            [*_die_with_parent(*as_user), *map(str, initialise), "--no-sync"],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "wal_level": "logical",
            "max_connections": "100",
        }
        command = [*_die_with_parent(*as_user), str(programs / "postgres"), "-D", str(data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        url = f"postgresql://lodestream@127.0.0.1:{port}/postgres"
        yield from _serve(
            name="postgres",
            url=url,
            port=port,
            command=command,
            folder=folder,
            is_ready=lambda: _run_sql(url, "select 1"),
            stop_signal=signal.SIGINT,  # ends sessions, and waits for nobody
        )


@contextlib.contextmanager
def run_s3() -> Iterator[Server]:
    """An object store with no buckets."""
    if any(importlib.util.find_spec(package) is None for package in ("moto", "flask", "flask_cors")):
        _refuse("moto with its server", "pip install -e '.[test]'")
    port = find_free_port()
    with make_folder("s3") as folder:
        script = Path(__file__).with_name("s3_server.py")
        yield from _serve(
            name="s3",
            url=f"http://127.0.0.1:{port}",
            port=port,
            command=[*_die_with_parent(), sys.executable, str(script), str(port)],
            folder=folder,
        )


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A Redis server of this session."""
    with run_redis() as server:
        yield server


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[Server]:
    """An etcd server of this session."""
    with run_etcd() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server of this session."""
    with run_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Server) -> str:
    """The URL of an empty database of this test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    assert _run_sql(postgres_server.url, f"create database {name}")
    return postgres_server.url.rpartition("/")[0] + "/" + name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server of this session."""
    with run_s3() as server:
        yield server


@pytest.fixture
def s3_options(s3_server: Server) -> dict[str, str]:
    """What Lance and obstore want to know to reach the S3 server."""
    return describe_s3(s3_server)


@pytest.fixture
def s3_bucket(s3_server: Server) -> str:
    """The name of an empty bucket of this test's own."""
    return make_bucket(s3_server)


def describe_s3(server: Server) -> dict[str, str]:
    """What Lance and obstore want to know to reach ``server``."""
    return {
        "aws_endpoint": server.url,
        "aws_access_key_id": S3_KEY,
        "aws_secret_access_key": S3_SECRET,
        "aws_region": "us-east-1",
        "allow_http": "true",
    }


def make_bucket(server: Server) -> str:
    """Makes a bucket with a new name and returns the name."""
    import http.client

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    # moto finds out from the signature's scope which service is meant.
    scope = f"AWS4-HMAC-SHA256 Credential={S3_KEY}/20260101/us-east-1/s3/aws4_request"
    connection.request("PUT", f"/{name}", headers={"Authorization": scope})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
    return name


def require_program(name: str, package: str) -> str:
    """The path of ``name``; fails in CI, and skips elsewhere, where it is not installed."""
    found = shutil.which(name)
    if found is None:
        _refuse(name, f"apt-get install {package}")
    return str(found)


def find_postgres_programs() -> Path:
    """The folder with ``postgres`` and ``initdb``: Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    return Path(require_program("postgres", "postgresql")).parent


def find_free_port() -> int:
    """A port of the loopback device that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def make_folder(name: str) -> Iterator[Path]:
    """A temporary folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix=f"ls-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(
    *,
    name: str,
    url: str,
    port: int,
    command: Sequence[str],
    folder: Path,
    is_ready: Callable[[], bool] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[Server]:
    server = Server(
        name=name,
        url=url,
        port=port,
        command=command,
        folder=folder,
        is_ready=is_ready or (lambda: _accepts(port)),
        stop_signal=stop_signal,
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _refuse(what: str, remedy: str) -> None:
    message = f"{what} is not installed: {remedy}"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message)
    pytest.skip(message)


def _die_with_parent(*options: str) -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL", *options]


def _find_user(*names: str) -> pwd.struct_passwd:
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError(f"none of these users exists: {', '.join(names)}")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _run_sql(url: str, statement: str) -> bool:
    import psycopg

    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)  # type: ignore[call-overload]
    except psycopg.OperationalError:
        return False
    return True
