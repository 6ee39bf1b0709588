"""The settings of the store: where it is, and how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field

from lodestream.pipeline.config.types import Duration, Section, Text
from lodestream.storage.registers.address import hide_password
from lodestream.storage.snapshot import MAX_SNAPSHOTS, Retention

_SECRET_WORDS: Final = ("secret", "password", "token", "key", "signature", "sas")


class StoreConfig(Section):
    """Where the features are kept.

    ``uri``      a folder, relative to the folder of ``lodestream.toml``, or ``s3://bucket/folder``, ``gs://...``,
                 ``az://...``
    ``options``  for object stores: ``aws_endpoint``, ``aws_region`` and whatever else Lance and obstore know; what is
                 not given here they take from the environment (``AWS_ACCESS_KEY_ID``, ...), where secrets should stay
    ``keep_snapshots, keep_for``  snapshots that can be opened and rolled back to: the last so many, and all that were
                 the latest one at some moment of so long
    """

    uri: Text = ".lodestream"
    options: Mapping[str, Text] = {}
    keep_snapshots: int = Field(default=10, ge=1, le=MAX_SNAPSHOTS)
    keep_for: Duration = 0.0

    def retention(self) -> Retention:
        """The settings as the store takes them."""
        return Retention(keep_snapshots=self.keep_snapshots, keep_for_s=self.keep_for)


def hide_secret(name: str, value: object) -> object:
    """``value`` as it may be shown: passwords in addresses, and options whose name speaks of a secret, are hidden."""
    if value and (name == "serve.token" or (".options." in name and any(w in name.lower() for w in _SECRET_WORDS))):
        return "***"
    return hide_password(value) if isinstance(value, str) else value
