"""The settings of the store: where it is, and how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lodestream.pipeline.config_types import Section, Text

_SECRET_WORDS: Final = ("secret", "password", "token", "key", "signature", "sas")


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
    """``value`` as it may be shown: that of a store's option whose name speaks of a secret is hidden."""
    is_secret = name.startswith("store.options.") and any(word in name.lower() for word in _SECRET_WORDS)
    return "***" if is_secret else value
