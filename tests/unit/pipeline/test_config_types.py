"""Types that settings are made of."""

from __future__ import annotations

import pytest

from lodestream.pipeline.config.types import check_encoding


@pytest.mark.parametrize("name", ["auto", "utf-8", "windows-1252", "koi8-r"])
def test_known_encodings_are_accepted(name: str) -> None:
    assert check_encoding(name) == name


@pytest.mark.parametrize("name", ["utf-9", "hex", "rot13", ""])
def test_unknown_encodings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        check_encoding(name)
