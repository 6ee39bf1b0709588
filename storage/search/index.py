"""The spans of one snapshot in memory, ready to be searched; the next snapshot's index shares what did not change.

Documents have numbers that are never used twice: a document that a publish changed gets a new one, and the rows under
its old number are dead from then on, for the new index alone. So an update reads the rows of changed documents only,
and searches of the old snapshot go on beside it. Blocks with many dead rows, and rows that came in small lots, are put
together anew now and then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.schema import GRANULARITIES, PARAGRAPH_KINDS
from lodestream.storage.catalog import Catalog
from lodestream.storage.codec import Int8Array
from lodestream.storage.reader import Snapshot
from lodestream.storage.search.blocks import BLOCK_ROWS, Block, Rows, classify_lengths, seal
from lodestream.storage.search.scores import Query

KINDS: Final = ("", *PARAGRAPH_KINDS, "?")
ROW_BYTES: Final = 19
"""Memory of a row besides its codes."""
MAX_LOOSE_ROWS: Final = 1 << 12
MAX_DEAD_SHARE: Final = 0.25

_HEADING: Final = KINDS.index("heading")
_READ_AGAIN_SHARE: Final = 0.3
_MAX_NUMBERS: Final = 2  # for each document, before the numbers of the dead are given up
_COLUMNS: Final = ("doc_id", "granularity", "ordinal", "kind", "char_start", "char_end", "density", "codes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A span and its score."""

    doc_id: str
    granularity: str
    ordinal: int
    kind: str
    char_start: int
    char_end: int
    density: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which rows a search is about. See pipeline.search.search_snapshot for each."""

    granularity: str = "paragraph"
    min_density: float | None = None
    headings: bool = False
    doc_prefix: str | None = None


@dataclass(slots=True, kw_only=True)
class _Names:
    """The names of all numbers so far, in the lots in which they came. Only ever appended to."""

    lots: list[pa.StringArray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.starts[-1] + len(self.lots[-1]) if self.lots else 0

    def __getitem__(self, number: int) -> str:
        lot = bisect_right(self.starts, number) - 1
        name: str = self.lots[lot][number - self.starts[lot]].as_py()
        return name

    def extended(self, doc_ids: pa.StringArray) -> _Names:
        return _Names(lots=[*self.lots, doc_ids], starts=[*self.starts, len(self)]) if len(doc_ids) else self

    def begin_with(self, prefix: str) -> NDArray[np.bool_]:
        parts = [pc.starts_with(lot, prefix).to_numpy(zero_copy_only=False) for lot in self.lots]
        return np.concatenate([np.zeros(0, np.bool_), *parts])


class VectorIndex:
    """An index of one snapshot. Immutable but for what it has noted of its masks; safe for many threads.

    Guarantees: the same spans in the same order as a scan of the snapshot (``scores``), whatever the filters.

    Cost: D + ROW_BYTES bytes of memory a row; while all are read, about three and a half times that at the peak.
    """

    def __init__(
        self,
        catalog: Catalog,
        names: _Names,
        numbers: NDArray[np.int32],
        is_live: NDArray[np.bool_],
        blocks: Mapping[str, Sequence[Block]],
    ) -> None:
        self._catalog = catalog
        self._names = names
        self._numbers = numbers
        self._is_live = is_live
        self._blocks: dict[str, tuple[Block, ...]] = {name: tuple(blocks.get(name, ())) for name in GRANULARITIES}
        self._masks: dict[tuple[int, bool], NDArray[np.bool_] | None] = {}

    @classmethod
    def load(cls, snapshot: Snapshot, catalog: Catalog) -> VectorIndex:
        """Read all rows of a snapshot, whose documents ``catalog`` holds."""
        names = _Names().extended(catalog.doc_ids)
        numbers = np.arange(len(catalog), dtype=np.int32)
        builder = _Builder()
        for batch in snapshot.scan_features(_COLUMNS):
            builder.add(batch, catalog.doc_ids, numbers)
        return cls(catalog, names, numbers, np.ones(len(catalog), np.bool_), builder.finish())

    def advance(self, snapshot: Snapshot, catalog: Catalog) -> VectorIndex:
        """The index of another snapshot, by reading what differs. This one stays as it is."""
        mine, theirs = catalog.match(self._catalog)
        is_new = np.ones(len(catalog), np.bool_)
        is_new[mine] = False
        added = catalog.doc_ids.filter(pa.array(is_new))
        has_grown = len(self._names) > _MAX_NUMBERS * len(catalog) + MAX_LOOSE_ROWS
        if has_grown or len(added) > _READ_AGAIN_SHARE * len(catalog):
            return VectorIndex.load(snapshot, catalog)
        numbers = np.empty(len(catalog), np.int32)
        numbers[mine] = self._numbers[theirs]
        numbers[is_new] = np.arange(len(self._names), len(self._names) + len(added), dtype=np.int32)
        is_live = np.zeros(len(self._names) + len(added), np.bool_)
        is_live[numbers] = True
        builder = _Builder()
        if len(added):
            for batch in snapshot.scan_features(_COLUMNS, doc_ids=added.to_pylist()):
                builder.add(batch, added, numbers[is_new])
        lots = builder.finish_loose()
        blocks = {name: _tidy([*held, *lots.get(name, ())], is_live) for name, held in self._blocks.items()}
        return VectorIndex(catalog, self._names.extended(added), numbers, is_live, blocks)

    @property
    def num_rows(self) -> int:
        """Rows held, the dead ones included."""
        return sum(len(block) for blocks in self._blocks.values() for block in blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the rows."""
        return sum(block.nbytes for blocks in self._blocks.values() for block in blocks)

    def search(self, query_D: NDArray[np.float32], *, limit: int, filters: Filters) -> list[Found]:
        """The ``limit`` spans with the highest cosine, best first; of equal ones by document and place."""
        query = Query.of(query_D)
        by_document = self._names.begin_with(filters.doc_prefix) if filters.doc_prefix is not None else None
        best = _Best(limit)
        for block in self._blocks[filters.granularity]:
            wanted = self._mask(block, filters, by_document)
            if wanted is None or wanted.any():
                rows, scores = block.find(query, limit, wanted, floor=best.floor)
                best.add(block, rows, scores)
        return self._describe(best, filters.granularity)

    def _mask(self, block: Block, filters: Filters, by_document: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        wanted = self._living(block, headings=filters.headings)
        if by_document is not None:
            chosen = by_document[block.rows.docs]
            wanted = chosen if wanted is None else wanted & chosen
        if filters.min_density is not None:
            dense = block.rows.densities.astype(np.float32) >= np.float32(filters.min_density)
            wanted = dense if wanted is None else wanted & dense
        return wanted

    def _living(self, block: Block, *, headings: bool) -> NDArray[np.bool_] | None:
        """The rows that this snapshot has, without headings unless they are wanted; None where that is all of them."""
        name = (id(block), headings)
        if name not in self._masks:
            mask = self._is_live[block.rows.docs]
            if not headings:
                mask &= block.rows.kinds != _HEADING
            self._masks[name] = None if mask.all() else mask
        return self._masks[name]

    def _describe(self, best: _Best, granularity: str) -> list[Found]:
        found = []
        for score, block, row in best.items():
            rows = block.rows
            found.append(
                Found(
                    doc_id=self._names[int(rows.docs[row])],
                    granularity=granularity,
                    ordinal=int(rows.ordinals[row]),
                    kind=KINDS[rows.kinds[row]],
                    char_start=int(rows.starts[row]),
                    char_end=int(rows.ends[row]),
                    density=float(rows.densities[row]),
                    score=score,
                )
            )
        found.sort(key=lambda span: (-span.score, span.doc_id, span.ordinal))
        return found[: best.limit]


class _Best:
    """The best rows so far, with all that tie with the last."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.floor = -np.inf
        self._items: list[tuple[float, Block, int]] = []

    def add(self, block: Block, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        self._items += [(score, block, row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]
        if len(self._items) >= self.limit:
            self.floor = sorted((score for score, _, _ in self._items), reverse=True)[self.limit - 1]
            self._items = [item for item in self._items if item[0] >= self.floor]

    def items(self) -> list[tuple[float, Block, int]]:
        return self._items


class _Builder:
    """Rows on their way into blocks: of each granularity so many at most wait."""

    def __init__(self) -> None:
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
            self._waiting.setdefault(name, []).append((codes[chosen], rows.take(chosen)))
            self._sizes[name] = self._sizes.get(name, 0) + len(chosen)
            if self._sizes[name] >= 8 * BLOCK_ROWS:
                self._seal(name, keep_small=False)

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


def _tidy(blocks: Sequence[Block], is_live: NDArray[np.bool_]) -> list[Block]:
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
    )
