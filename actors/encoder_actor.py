"""The Ray shell of the encoder: an actor that holds one featurizer with its weights and encodes what it is handed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions

EncodeTable = Callable[[Featurizer, pa.Table, dict[bytes, Any]], pa.Table]
"""What an actor does with a prepared table; the dictionary lives as long as the actor."""


class EncoderActor:
    """Callable class for ``Dataset.map_batches``: loads the weights once, then calls ``encode_table`` on each block.

    Ray makes an actor anew for every execution, so that ``memory`` holds the segments of one chunk at most.
    """

    def __init__(self, options: FeaturizerOptions, encode_table: EncodeTable, num_threads: int) -> None:
        from lodestream.kernels.threads import use_threads

        use_threads(num_threads)
        self._featurizer = Featurizer(options)
        self._encode_table = encode_table
        self._memory: dict[bytes, Any] = {}

    def __call__(self, prepared: pa.Table) -> pa.Table:
        return self._encode_table(self._featurizer, prepared, self._memory)
