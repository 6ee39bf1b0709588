"""A register as a key of etcd, replaced by a transaction on its revision, through etcd's JSON gateway.

A revision counts the changes of the whole cluster, so it never comes twice. Several members may be named in the
address; when one gives no answer the next one is asked.
"""

from __future__ import annotations

import base64
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from etcd3gw import exceptions
from etcd3gw.client import Etcd3Client

from lodestream.errors import ConfigError, LodestreamError, StoreUnwritable
from lodestream.storage.registers.address import hide_password
from lodestream.storage.registers.options import RegisterOptions
from lodestream.storage.registers.protocol import Version
from lodestream.storage.registers.remote import Unreachable

KEY_PREFIX: Final = "/lodestream/"
DEFAULT_PORT: Final = 2379

_CERTIFICATES: Final = ("ca_cert", "cert_cert", "cert_key")
_NOT_SENT: Final = ("NewConnectionError", "ConnectTimeout", "NameResolutionError", "Connection refused")
_NO_TRUST: Final = ("CERTIFICATE_VERIFY_FAILED", "certificate required", "alert bad certificate", "alert unknown ca")
_NO_TOKEN: Final = ("invalid auth token", "user name is empty")
_NO_ACCESS: Final = ("permission denied", "authentication failed", "invalid user", *_NO_TOKEN)
_NOT_NOW: Final = ("etcdserver: request timed out", "etcdserver: no leader", "etcdserver: leader changed")


class EtcdBackend:
    """The body is the value of the key ``/lodestream/<name>``.

    ``url`` is ``http://[user:password@]host[:port][,host[:port]...]``, or ``https``; then ``?ca_cert=FILE`` and, for a
    client's own certificate, ``&cert_cert=FILE&cert_key=FILE`` may follow.
    """

    def __init__(self, url: str, name: str, options: RegisterOptions) -> None:
        self.place = f"{hide_password(url).partition('?')[0]} (key {KEY_PREFIX}{name})"
        self._key = _encode((KEY_PREFIX + name).encode())
        self._user, self._clients = _make_clients(url, options.timeout_s)
        self._current = 0

    def fetch(self) -> tuple[bytes, Version] | None:
        """See Backend."""
        answer = self._post("/kv/range", {"key": self._key})
        return _read_pair(answer["kvs"][0]) if answer.get("kvs") else None

    def replace(self, expected_version: Version | None, body: bytes) -> Version | None:
        """See Backend."""
        # A key that does not exist has revision 0.
        expected = {"key": self._key, "target": "MOD", "result": "EQUAL", "mod_revision": expected_version or "0"}
        put = {"request_put": {"key": self._key, "value": _encode(body)}}
        answer = self._post("/kv/txn", {"compare": [expected], "success": [put], "failure": []})
        return str(answer["header"]["revision"]) if answer.get("succeeded") else None

    def remove(self) -> None:
        """See Backend."""
        self._post("/kv/deleterange", {"key": self._key})

    def close(self) -> None:
        """Close the pooled connections."""
        for client in self._clients:
            client.session.close()

    def _post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        client = self._clients[self._current]
        try:
            try:
                return self._send(client, path, request)
            except exceptions.Etcd3Exception as error:
                if self._user is None or not _mentions(error, _NO_TOKEN):
                    raise
                self._authenticate(client)
                return self._send(client, path, request)
        except exceptions.Etcd3Exception as error:
            self._current = (self._current + 1) % len(self._clients)
            raise self._explain(error) from error

    def _send(self, client: Etcd3Client, path: str, request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(client.get_url(path), json=request)
        return answer

    def _authenticate(self, client: Etcd3Client) -> None:
        assert self._user is not None
        client.session.headers.pop("Authorization", None)
        name, password = self._user
        answer = self._send(client, "/auth/authenticate", {"name": name, "password": password})
        client.session.headers["Authorization"] = answer["token"]

    def _explain(self, error: exceptions.Etcd3Exception) -> LodestreamError | Unreachable:
        reason = error.detail_text or type(error).__name__
        if _mentions(error, _NO_TRUST):
            return ConfigError(
                f"{self.place} and this machine do not trust each other: {reason}",
                "name the certificates in lease.url: https://host:2379?ca_cert=FILE&cert_cert=FILE&cert_key=FILE",
            )
        if _mentions(error, _NO_ACCESS):
            return StoreUnwritable(
                f"{self.place} refuses access: {reason}",
                f"look at user and password in lease.url; the user needs to read and write keys below {KEY_PREFIX}",
            )
        lost = (exceptions.ConnectionFailedError, exceptions.ConnectionTimeoutError, exceptions.InternalServerError)
        if isinstance(error, lost) or _mentions(error, _NOT_NOW):
            return Unreachable(reason, was_sent=not _mentions(error, _NOT_SENT))
        return StoreUnwritable(f"{self.place} refuses: {reason}", "look at the server's log")


def _make_clients(url: str, timeout_s: float) -> tuple[tuple[str, str] | None, list[Etcd3Client]]:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    certificates: dict[str, Any] = dict(parse_qsl(parts.query))
    members = [urlsplit(f"//{host}") for host in hosts.split(",")]
    try:
        places = [(member.hostname, member.port or DEFAULT_PORT) for member in members]
    except ValueError:
        places = []
    if parts.scheme not in ("http", "https") or not all(host for host, _ in places) or not places:
        raise _wrong_address(url, "it names no host")
    if unknown := set(certificates) - set(_CERTIFICATES):
        raise _wrong_address(url, f"{', '.join(sorted(unknown))} is not one of {', '.join(_CERTIFICATES)}")
    clients = [
        Etcd3Client(host=host or "", port=port, protocol=parts.scheme, timeout=timeout_s, **certificates)
        for host, port in places
    ]
    if "ca_cert" in certificates:
        for client in clients:
            client.session.trust_env = False  # REQUESTS_CA_BUNDLE would win over what is named here
    return (unquote(user), unquote(password)) if user else None, clients


def _wrong_address(url: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{hide_password(url)} is no address of etcd: {reason}", "set lease.url to something like http://host:2379"
    )


def _read_pair(pair: dict[str, str]) -> tuple[bytes, Version]:
    return base64.b64decode(pair["value"]), pair["mod_revision"]


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _mentions(error: exceptions.Etcd3Exception, marks: tuple[str, ...]) -> bool:
    return any(mark in f"{error.detail_text} {error}" for mark in marks)
