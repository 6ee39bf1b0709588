"""Fixtures that several of these tests share."""

from __future__ import annotations

from tests.support.http_fixtures import client, http_workspace, served  # noqa: F401  fixtures
from tests.support.versions import corpus, made_corpus, with_other  # noqa: F401  fixtures
