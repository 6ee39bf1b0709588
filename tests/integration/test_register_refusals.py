"""Registers whose server answers, and says no: wrong password, no rights, no such bucket or database, a collision."""

from __future__ import annotations

import dataclasses
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psycopg
import pytest
import redis
from etcd3gw.client import Etcd3Client

from lodestream.errors import CommitConflict, ConfigError, StoreError, StoreUnwritable
from lodestream.storage.registers.opening import open_register
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import CasRegister
from tests.support.certificates import make_certificates
from tests.support.servers import Server, run_etcd

PATIENCE = RegisterOptions(timeout_s=2, give_up_after_s=3)


def open_impatiently(url: str, storage: dict[str, str] | None = None) -> CasRegister:
    return open_register("auto", url, "lease", dataclasses.replace(PATIENCE, storage=storage or {}))


def with_user(url: str, user: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}").geturl()


def assert_refused(register: CasRegister, kind: type[StoreError | ConfigError], *parts: str) -> None:
    """Neither call is tried for long, and both name the reason; no message holds the password."""
    for call in (register.read, lambda: register.cas(None, {"nonce": "a"})):
        with pytest.raises(kind) as caught:
            call()
        assert all(part in str(caught.value) for part in parts), str(caught.value)
        assert caught.value.hint and "wrong-password" not in str(caught.value)


def test_postgres_database_does_not_exist(postgres_server: Server) -> None:
    url = postgres_server.url.rpartition("/")[0] + "/nowhere"
    assert_refused(open_impatiently(url), ConfigError, "nowhere", "lease.url")


def test_postgres_without_rights(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("drop role if exists guest")
        connection.execute("create role guest login")
        connection.execute("revoke all on schema public from public")
        register = open_impatiently(with_user(postgres_url, "guest"))
        with pytest.raises(StoreUnwritable, match="refuses access"):
            register.cas(None, {"nonce": "a"})
        open_impatiently(postgres_url).cas(None, {"nonce": "a"})
        connection.execute("grant usage on schema public to guest")
        assert_refused(register, StoreUnwritable, "permission denied", "lodestream_registers")


def test_postgres_makes_one_table_for_many(postgres_url: str) -> None:
    """Also when several come at once and none finds it."""
    barrier, failures = threading.Barrier(6), []

    def create(name: str) -> None:
        register = open_register("postgres", postgres_url, name, PATIENCE)
        barrier.wait()
        try:
            register.cas(None, {"nonce": name})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=create, args=(f"store-{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select count(*), count(distinct version) from lodestream_registers").fetchone() == (
            6,
            6,
        )


def test_postgres_versions_survive_a_deleted_row(postgres_url: str) -> None:
    register = open_impatiently(postgres_url)
    first = register.cas(None, {"nonce": "a"})
    with psycopg.connect(postgres_url) as connection:
        connection.execute("delete from lodestream_registers")
    assert register.read() is None
    second = register.cas(None, {"nonce": "b"})
    assert second != first
    with pytest.raises(CommitConflict):
        register.cas(first, {"nonce": "c"})


def test_redis_user_without_rights(redis_server: Server) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.acl_setuser("guest", enabled=True, passwords=["+guest-password"], keys=["other*"], commands=["+@all"])
    url = with_user(redis_server.url, "guest:guest-password")
    assert_refused(open_impatiently(url), StoreUnwritable, "refuses", "lease.url")
    url = with_user(redis_server.url, "guest:wrong-password")
    assert_refused(open_impatiently(url), StoreUnwritable, "refuses access", "lease.url")


def test_wiped_redis_refuses_who_knew_it_before(redis_server: Server) -> None:
    register = open_impatiently(redis_server.url)
    version = None
    for number in range(3):
        version = register.cas(version, {"nonce": f"before-{number}"})
    redis_server.stop()
    redis_server.start()
    assert register.read() is None
    with pytest.raises(CommitConflict, match="version none"):
        register.cas(version, {"nonce": "late"})
    register.cas(None, {"nonce": "after"})
    for number in range(3):
        register.cas(current(register), {"nonce": f"after-{number}"})
    with pytest.raises(CommitConflict):
        register.cas(version, {"nonce": "late"})


def current(register: CasRegister) -> str:
    found = register.read()
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def guarded_etcd() -> Iterator[Server]:
    """An etcd that wants a password: root may everything, guest nothing."""
    with run_etcd() as server:
        client = Etcd3Client("127.0.0.1", server.port, timeout=5)
        for path, request in (
            ("/auth/user/add", {"name": "root", "password": "root-password"}),
            ("/auth/user/add", {"name": "guest", "password": "guest-password"}),
            ("/auth/role/add", {"name": "root"}),
            ("/auth/user/grant", {"user": "root", "role": "root"}),
            ("/auth/enable", {}),
        ):
            client.post(client.get_url(path), json=request)
        client.session.close()
        yield server


def test_etcd_with_a_password(guarded_etcd: Server) -> None:
    register = open_impatiently(with_user(guarded_etcd.url, "root:root-password"))
    version = register.cas(None, {"nonce": "a"})
    guarded_etcd.stop()  # forgets the tokens it gave
    guarded_etcd.start()
    version = register.cas(version, {"nonce": "b"})
    assert register.read() == ({"nonce": "b"}, version)


@pytest.mark.parametrize("user", ["", "guest:guest-password", "root:wrong-password", "nobody:wrong-password"])
def test_etcd_refuses(guarded_etcd: Server, user: str) -> None:
    url = with_user(guarded_etcd.url, user) if user else guarded_etcd.url
    assert_refused(open_impatiently(url), StoreUnwritable, "refuses access", "lease.url")


def test_etcd_with_certificates_of_both_sides(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    options = {
        "cert_file": files["cert_cert"],
        "key_file": files["cert_key"],
        "trusted_ca_file": files["ca_cert"],
        "client_cert_auth": "true",
    }
    with run_etcd(scheme="https", **options) as server:
        register = open_impatiently(f"{server.url}?{urlencode(files)}")
        version = register.cas(None, {"nonce": "a"})
        assert register.read() == ({"nonce": "a"}, version)
        for stranger in (server.url, f"{server.url}?{urlencode({'ca_cert': files['ca_cert']})}"):
            assert_refused(open_impatiently(stranger), ConfigError, "do not trust each other", "ca_cert=FILE")


def test_etcd_asks_the_next_member(etcd_server: Server) -> None:
    register = open_impatiently(f"http://127.0.0.1:1,127.0.0.1:{etcd_server.port}")
    version = register.cas(None, {"nonce": "a"})
    assert register.read() == ({"nonce": "a"}, version)


def test_etcd_record_that_is_too_large(etcd_server: Server) -> None:
    with pytest.raises(StoreUnwritable, match="too large"):
        open_register("etcd", etcd_server.url, "large", PATIENCE).cas(None, {"nonce": "a", "text": "x" * 2_000_000})


def test_bucket_does_not_exist(s3_options: dict[str, str]) -> None:
    assert_refused(open_impatiently("s3://nowhere/store", s3_options), ConfigError, "does not exist", "store.uri")


class Script(http.server.BaseHTTPRequestHandler):
    """Answers with the statuses of the list, one a request; the last one for ever."""

    statuses: list[int]
    seen: list[str]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        self.seen.append(f"{self.command} {status}")
        code = {404: "NoSuchKey", 409: "ConditionalRequestConflict"}.get(status, "Other")
        body = b"" if status == 200 else f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted(request: pytest.FixtureRequest) -> Iterator[tuple[CasRegister, list[str]]]:
    """A register in an object store that answers with the statuses of the parameter."""
    handler = type("Scripted", (Script,), {"statuses": list(request.param), "seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        storage = {
            "aws_endpoint": f"http://127.0.0.1:{server.server_port}",
            "aws_access_key_id": "me",
            "aws_secret_access_key": "wrong-password",
            "aws_region": "us-east-1",
        }
        yield open_impatiently("s3://bucket/store", storage), handler.seen  # type: ignore[attr-defined]
        server.shutdown()


@pytest.mark.parametrize("scripted", [[403], [401]], indirect=True)
def test_object_store_refuses_access(scripted: tuple[CasRegister, list[str]]) -> None:
    assert_refused(scripted[0], StoreUnwritable, "refuses access", "credentials")
    assert len(scripted[1]) == 2  # nothing is tried again


@pytest.mark.parametrize("scripted", [[409, 404, 200]], indirect=True)
def test_two_writes_at_once_are_no_conflict_yet(scripted: tuple[CasRegister, list[str]]) -> None:
    """409: look again; it is still the one to replace, so write again."""
    assert scripted[0].cas(None, {"nonce": "a"}) == '{"e_tag": "\\"1\\""}'
    assert scripted[1] == ["PUT 409", "GET 404", "PUT 200"]


@pytest.mark.parametrize("scripted", [[503, 404, 500, 404, 200]], indirect=True)
def test_overload_is_waited_for(scripted: tuple[CasRegister, list[str]]) -> None:
    """A failed write may have happened: it is looked up before it is sent again."""
    scripted[0].cas(None, {"nonce": "a"})
    assert scripted[1] == ["PUT 503", "GET 404", "PUT 500", "GET 404", "PUT 200"]
