"""Who may ask: a bearer token where one is configured, and the host names that the server goes by where none is."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from pathlib import Path
from typing import Final

from lodestream.errors import AccessDenied, ConfigError
from lodestream.pipeline.config.settings import LoadedConfig

OPEN_PATHS: Final = frozenset({"/livez", "/readyz"})
"""Probes of a cluster carry no token; they say nothing about the content."""

MIN_TOKEN_CHARS: Final = 16
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Access:
    """Checks requests. Immutable; safe for many threads.

    A page in a browser cannot send a bearer token, so the token is also taken as the password of HTTP Basic. Without a
    token only requests to a loopback name are answered: a web page elsewhere could otherwise have its own name resolve
    to 127.0.0.1 and read through the visitor's browser.
    """

    def __init__(self, token: str | None = None, *, hosts: frozenset[str] | None = None) -> None:
        """``hosts``: names that requests may be addressed to; None takes any."""
        self._digest = None if token is None else _hash(token)
        self._hosts = hosts

    @property
    def needs_token(self) -> bool:
        return self._digest is not None

    def check(self, path: str, *, host: str, authorization: str) -> None:
        """Raises AccessDenied unless a request with these headers may be answered."""
        if self._hosts is not None and _strip_port(host) not in self._hosts:
            raise AccessDenied(
                "this server is reached as localhost or 127.0.0.1 only",
                "to serve other machines give it a token: serve.token_file",
            )
        if self._digest is None or path in OPEN_PATHS:
            return
        if not hmac.compare_digest(self._digest, _hash(_read_token(authorization))):
            raise AccessDenied("a valid token is needed", "send the header: Authorization: Bearer TOKEN")


def open_access(loaded: LoadedConfig) -> Access:
    """The access that is configured.

    Raises:
        ConfigError: the token cannot be read or is too short, or others could reach the server and there is none.
    """
    serve = loaded.config.serve
    token = serve.token or (_read_file(loaded.resolve(serve.token_file)) if serve.token_file else "")
    if token and (len(token) < MIN_TOKEN_CHARS or not token.isascii() or any(c.isspace() for c in token)):
        raise ConfigError(
            f"the token must have {MIN_TOKEN_CHARS} characters or more of ASCII, and no white space",
            "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    if token:
        return Access(token)
    if is_loopback(serve.host):
        return Access(hosts=_LOOPBACK_NAMES | {serve.host})
    if serve.allow_anonymous:
        return Access()
    raise ConfigError(
        f"{serve.host} can be reached from other machines, and there is no token",
        'set serve.token_file, or serve.host = "127.0.0.1"; to serve everybody: --set serve.allow_anonymous=true',
    )


def is_loopback(host: str) -> bool:
    """Whether a server on this address is reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_file(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.token_file {path} cannot be read: {error}", "give a readable file") from None
    if not token:
        raise ConfigError(f"serve.token_file {path} is empty", "write a token into it")
    return token


def _read_token(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return ""


def _strip_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _hash(token: str) -> bytes:
    # Of one length, so that the comparison's time says nothing about the token's.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
