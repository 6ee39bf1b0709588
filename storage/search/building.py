"""Rows on their way into blocks: as they are read, and as blocks are put together anew once rows of them are dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.schema import PARAGRAPH_KINDS
from lodestream.storage.codec import Int8Array
from lodestream.storage.search.blocks import BLOCK_ROWS, Block, Rows, classify_lengths, seal
from lodestream.storage.search.cells import Centroids

KINDS: Final = ("", *PARAGRAPH_KINDS, "?")
MAX_LOOSE_ROWS: Final = 1 << 12
MAX_DEAD_SHARE: Final = 0.25


class Builder:
    """Rows on their way into blocks: of each granularity so many at most wait."""

    def __init__(self, centroids: Mapping[str, Centroids]) -> None:
        """Begin without rows; those of granularities that have ``centroids`` go into cells."""
        self._centroids = centroids
        self._waiting: dict[str, list[tuple[Int8Array, Rows]]] = {}
        self._sizes: dict[str, int] = {}
        self._blocks: dict[str, list[Block]] = {}

    def add(self, batch: pa.RecordBatch, doc_ids: pa.StringArray, numbers: NDArray[np.int32]) -> None:
        """Take rows of the documents ``doc_ids``, which have these numbers; rows of others have no document."""
        places = pc.index_in(batch.column("doc_id"), value_set=doc_ids)
        if places.null_count:
            batch, places = batch.filter(places.is_valid()), pc.drop_null(places)
        codes, rows = _split(batch, numbers[places.to_numpy()])
        granularities = batch.column("granularity")
        for name in pc.unique(granularities).to_pylist():
            chosen = np.flatnonzero(pc.equal(granularities, name).to_numpy(zero_copy_only=False))
            self._waiting.setdefault(name, []).append(self._place(name, codes[chosen], rows.take(chosen)))
            self._sizes[name] = self._sizes.get(name, 0) + len(chosen)
            if self._sizes[name] >= 8 * BLOCK_ROWS:
                self._seal(name, keep_small=False)

    def _place(self, name: str, codes: Int8Array, rows: Rows) -> tuple[Int8Array, Rows]:
        centroids = self._centroids.get(name)
        return codes, rows if centroids is None else replace(rows, cells=centroids.assign(codes))

    def finish(self) -> dict[str, list[Block]]:
        """All rows in blocks."""
        for name in list(self._waiting):
            self._seal(name, keep_small=True)
        return self._blocks

    def finish_loose(self) -> dict[str, list[Block]]:
        """All rows; those that wait as one loose block of each granularity."""
        for name, parts in self._waiting.items():
            if self._sizes[name]:
                self._blocks.setdefault(name, []).append(Block(*_join(parts)))
        return self._blocks

    def _seal(self, name: str, *, keep_small: bool) -> None:
        """Put what waits into blocks; small ones wait on, so that each class has one of them at most."""
        blocks = seal(*_join(self._waiting[name]))
        full = [block for block in blocks if keep_small or len(block) == BLOCK_ROWS]
        rest = [block for block in blocks if not keep_small and len(block) < BLOCK_ROWS]
        self._blocks.setdefault(name, []).extend(full)
        self._waiting[name] = [(block.take_codes(slice(None)), block.rows) for block in rest]
        self._sizes[name] = sum(len(block) for block in rest)


def tidy(blocks: Sequence[Block], is_live: NDArray[np.bool_]) -> list[Block]:
    """The blocks with the dead rows of the worst taken out, and the loose rows put by length once they are many."""
    num_loose = sum(len(block) for block in blocks if block.length_class is None)
    pool: list[Block] = []
    kept: list[Block] = []
    for block in blocks:
        dead = len(block) - int(np.count_nonzero(is_live[block.rows.docs]))
        is_loose = block.length_class is None and num_loose > MAX_LOOSE_ROWS
        (pool if is_loose or dead > MAX_DEAD_SHARE * len(block) else kept).append(block)
    if not pool:
        return kept
    if num_loose <= MAX_LOOSE_ROWS and all(block.length_class is None for block in pool):
        return [*kept, *_rejoin(pool, is_live)]
    classes = {name for fresh in _rejoin(pool, is_live) for name in classify_lengths(_parts(fresh)[0]).tolist()}
    half_full = [b for b in kept if b.length_class in classes and len(b) < BLOCK_ROWS // 2]
    rest = [block for block in kept if block not in half_full]
    return [*rest, *(block for fresh in _rejoin([*pool, *half_full], is_live) for block in seal(*_parts(fresh)))]


def _rejoin(blocks: Sequence[Block], is_live: NDArray[np.bool_]) -> Iterator[Block]:
    """The living rows of blocks as one loose block, if there are any."""
    parts = []
    for block in blocks:
        alive = np.flatnonzero(is_live[block.rows.docs])
        if len(alive):
            parts.append((block.take_codes(alive), block.rows.take(alive)))
    if parts:
        yield Block(*_join(parts))


def _parts(block: Block) -> tuple[Int8Array, Rows]:
    return block.take_codes(slice(None)), block.rows


def _join(parts: Sequence[tuple[Int8Array, Rows]]) -> tuple[Int8Array, Rows]:
    return np.concatenate([codes for codes, _ in parts]), Rows.join([rows for _, rows in parts])


def _split(batch: pa.RecordBatch, docs: NDArray[Any]) -> tuple[Int8Array, Rows]:
    """Codes int8 [N, D] and the rest of rows."""
    column = batch.column("codes")
    codes = column.flatten().to_numpy().reshape(batch.num_rows, column.type.list_size)
    kinds = pc.fill_null(pc.index_in(batch.column("kind"), value_set=pa.array(KINDS)), len(KINDS) - 1)
    return codes, Rows(
        docs=docs.astype(np.int32),
        ordinals=batch.column("ordinal").to_numpy(),
        starts=batch.column("char_start").to_numpy(),
        ends=batch.column("char_end").to_numpy(),
        densities=batch.column("density").to_numpy(zero_copy_only=False),
        kinds=kinds.to_numpy().astype(np.uint8),
        cells=np.zeros(batch.num_rows, np.uint16),
    )
