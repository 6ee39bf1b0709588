"""Who may ask."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.errors import AccessDenied, ConfigError
from lodestream.pipeline.config.settings import load_config, write_initial_config
from lodestream.pipeline.serve.access import Access, is_loopback, open_access

TOKEN = "a-token-that-is-long-enough"


def open_with(folder: Path, **settings: Any) -> Access:
    if not (folder / "lodestream.toml").exists():
        write_initial_config(folder, source_path=".")
    overrides = [f"serve.{name}={value}" for name, value in settings.items()]
    return open_access(load_config(start=folder, overrides=overrides, environ={}))


@given(st.text(max_size=60))
def test_only_the_token_opens(given_value: str) -> None:
    access = Access(TOKEN)
    if given_value.strip() == TOKEN:
        return
    for header in (given_value, f"Bearer {given_value}", f"Basic {given_value}", f"Bearer  {TOKEN[:-1]}"):
        with pytest.raises(AccessDenied):
            access.check("/v1/status", host="", authorization=header)


def test_the_token_opens_as_bearer_and_as_password() -> None:
    access = Access(TOKEN)
    access.check("/", host="any", authorization=f"Bearer {TOKEN}")
    access.check("/", host="any", authorization=f"bearer {TOKEN}")
    access.check("/", host="any", authorization="Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode())
    access.check("/livez", host="any", authorization="")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8750", "", "127.0.0.1.evil.example", "[::2]:1"])
def test_without_a_token_foreign_names_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(AccessDenied):
        open_with(tmp_path).check("/", host=host, authorization="")


@pytest.mark.parametrize("host", ["localhost", "localhost:8750", "127.0.0.1:1", "[::1]:8750", "::1"])
def test_names_of_this_machine_are_answered(tmp_path: Path, host: str) -> None:
    open_with(tmp_path).check("/v1/status", host=host, authorization="")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_others_are_not_served_without_a_token(tmp_path: Path, host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="no token"):
        open_with(tmp_path, host=host)
    assert open_with(tmp_path, host=host, token=TOKEN).needs_token
    open_with(tmp_path, host=host, allow_anonymous="true").check("/", host="any.example", authorization="")


@pytest.mark.parametrize("token", ["short", "has white space in it", "ümlaut-ümlaut-ümlaut"])
def test_weak_tokens_are_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(ConfigError, match="16 characters"):
        open_with(tmp_path, token=token)


def test_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        open_with(tmp_path, token_file="empty")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_with(tmp_path, token_file="missing")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    open_with(tmp_path, token_file="token").check("/", host="", authorization=f"Bearer {TOKEN}")
    with pytest.raises(ConfigError, match="either token or token_file"):
        open_with(tmp_path, token_file="token", token=TOKEN)
