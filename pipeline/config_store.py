"""The settings of the store: where it is, and how it is reached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from lodestream.pipeline.config_types import Section, Text

_SECRET_WORDS: Final = ("secret", "password", "token", "key", "signature", "sas")

_PASSWORD_IN_URL: Final = re.compile(r"(://[^:/@\s]*:)[^@\s]*@")
_PASSWORD_SETTING: Final = re.compile(r"(\bpassword\s*=\s*)[^\s&]+")


class StoreConfig(Section):
    """Where the features are kept.

    ``uri``      a folder, relative to the folder of ``lodestream.toml``, or ``s3://bucket/folder``, ``gs://...``,
                 ``az://...``
    ``options``  for object stores: ``aws_endpoint``, ``aws_region`` and whatever else Lance and obstore know; what is
                 not given here they take from the environment (``AWS_ACCESS_KEY_ID``, ...), where secrets should stay
    """

    uri: Text = ".lodestream"
    options: Mapping[str, Text] = {}


def hide_secret(name: str, value: object) -> object:
    """``value`` as it may be shown: passwords in addresses, and options whose name speaks of a secret, are hidden."""
    if ".options." in name and any(word in name.lower() for word in _SECRET_WORDS):
        return "***"
    if name.endswith((".url", ".uri")) and isinstance(value, str):
        return _PASSWORD_SETTING.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1***@", value))
    return value
