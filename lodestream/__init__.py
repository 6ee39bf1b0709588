"""lodestream: sentence, paragraph, topic and document features of a changing corpus.

The names below are loaded on first use, so that ``import lodestream`` stays cheap: it imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "AsyncClient": "lodestream.pipeline.client.async_client",
    "Client": "lodestream.pipeline.client.client",
    "Featurizer": "lodestream.actors.featurizer",
    "LodestreamError": "lodestream.errors",
    "Library": "lodestream.pipeline.library",
    "open": "lodestream.pipeline.library",
}

if TYPE_CHECKING:
    from lodestream.actors.featurizer import Featurizer
    from lodestream.errors import LodestreamError
    from lodestream.pipeline.client.async_client import AsyncClient
    from lodestream.pipeline.client.client import Client
    from lodestream.pipeline.library import Library, open  # noqa: A004

__all__ = ["AsyncClient", "Client", "Featurizer", "Library", "LodestreamError", "__version__", "open"]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'lodestream' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
