"""The spans of one snapshot in memory, ready to be searched; the next snapshot's index shares what did not change.

Documents have numbers that are never used twice: a document that a publish changed gets a new one, and the rows under
its old number are dead from then on, for the new index alone. So an update reads the rows of changed documents only,
and searches of the old snapshot go on beside it. Blocks with many dead rows, and rows that came in small lots, are put
together anew now and then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lodestream.schema import GRANULARITIES
from lodestream.storage.catalog import Catalog
from lodestream.storage.codec import Int8Array
from lodestream.storage.reader import Snapshot
from lodestream.storage.search.best import Best, find_among
from lodestream.storage.search.blocks import Block
from lodestream.storage.search.building import KINDS, MAX_LOOSE_ROWS, Builder, tidy
from lodestream.storage.search.cells import POINTS_A_CELL, Centroids, count_cells, train
from lodestream.storage.search.scores import Query

ROW_BYTES: Final = 23
"""Memory of a row besides its codes."""

_ROWS_A_HIT: Final = 128  # looked at for each span wanted, where only some cells are looked into
_MOST_TIMES: Final = 4  # as many cells as were asked for
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
        *,
        centroids: Mapping[str, Centroids] | None = None,
    ) -> None:
        self.catalog = catalog
        self._names = names
        self._numbers = numbers
        self._is_live = is_live
        self._blocks: dict[str, tuple[Block, ...]] = {name: tuple(blocks.get(name, ())) for name in GRANULARITIES}
        self._masks: dict[tuple[int, bool], NDArray[np.bool_] | None] = {}
        self.centroids: Mapping[str, Centroids] = centroids or {}

    @classmethod
    def load(cls, snapshot: Snapshot, catalog: Catalog) -> VectorIndex:
        """Read all rows of a snapshot, whose documents ``catalog`` holds."""
        names = _Names().extended(catalog.doc_ids)
        numbers = np.arange(len(catalog), dtype=np.int32)
        builder = Builder({})
        for batch in snapshot.scan_features(_COLUMNS):
            builder.add(batch, catalog.doc_ids, numbers)
        return cls(catalog, names, numbers, np.ones(len(catalog), np.bool_), builder.finish())

    def advance(self, snapshot: Snapshot, catalog: Catalog) -> VectorIndex:
        """The index of another snapshot, by reading what differs. This one stays as it is."""
        mine, theirs = catalog.match(self.catalog)
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
        builder = Builder(self.centroids)
        if len(added):
            for batch in snapshot.scan_features(_COLUMNS, doc_ids=added.to_pylist()):
                builder.add(batch, added, numbers[is_new])
        lots = builder.finish_loose()
        blocks = {name: tidy([*held, *lots.get(name, ())], is_live) for name, held in self._blocks.items()}
        return VectorIndex(catalog, self._names.extended(added), numbers, is_live, blocks, centroids=self.centroids)

    @property
    def num_rows(self) -> int:
        """Rows held, the dead ones included."""
        return sum(self.count_rows(granularity) for granularity in self._blocks)

    def count_rows(self, granularity: str, *, since: int = 0) -> int:
        """Rows held of a granularity, the dead ones included; of documents with the number ``since`` and later ones."""
        blocks = self._blocks[granularity]
        if not since:
            return sum(len(block) for block in blocks)
        return sum(int(np.count_nonzero(block.rows.docs >= since)) for block in blocks)

    @property
    def next_number(self) -> int:
        """The number of the next document that comes."""
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the rows."""
        return sum(block.nbytes for blocks in self._blocks.values() for block in blocks)

    def search(self, query_D: NDArray[np.float32], *, limit: int, filters: Filters) -> list[Found]:
        """The ``limit`` spans with the highest cosine, best first; of equal ones by document and place."""
        query = Query.of(query_D)
        by_document = self._names.begin_with(filters.doc_prefix) if filters.doc_prefix is not None else None
        best = Best(limit)
        for block in self._blocks[filters.granularity]:
            wanted = self._mask(block, filters, by_document)
            if wanted is None or wanted.any():
                rows, scores = block.find(query, limit, wanted, floor=best.floor)
                best.add(block, rows, scores)
        return self._describe(best, filters.granularity)

    def search_cells(
        self, query_D: NDArray[np.float32], *, limit: int, filters: Filters, num_cells: int
    ) -> tuple[list[Found], bool]:
        """As ``search``, among the rows of the ``num_cells`` cells nearest to the query, and whether these were all.

        More cells are looked into where filters leave few of their rows, or many spans are wanted. Scores are those of
        ``search``: only which spans are found differs.
        """
        centroids = self.centroids.get(filters.granularity)
        if centroids is None:
            return self.search(query_D, limit=limit, filters=filters), True
        query = Query.of(query_D)
        by_document = self._names.begin_with(filters.doc_prefix) if filters.doc_prefix is not None else None
        cells, least, most = centroids.rank(query.vector), 0, _MOST_TIMES * num_cells
        while num_cells <= most:
            picked = [(block, block.pick(cells[:num_cells])) for block in self._blocks[filters.granularity]]
            least = least or max(_ROWS_A_HIT * limit, sum(len(rows) for _, rows in picked) // 2)
            kept = [(block, self._keep(block, rows, filters, by_document)) for block, rows in picked]
            if num_cells >= len(cells) or sum(len(rows) for _, rows in kept) >= least:
                best = find_among(kept, query, limit)
                return self._describe(best, filters.granularity), num_cells >= len(cells)
            num_cells *= 2
        # Where filters leave so little, to look at all that they leave takes less time than to look for it in cells.
        return self.search(query_D, limit=limit, filters=filters), True

    def divide(
        self, granularity: str, centroids: Centroids, known: dict[int, tuple[Block, Block]] | None = None
    ) -> VectorIndex:
        """The same rows, those of a granularity in the cells of ``centroids``. This one stays as it is.

        Args:
            known: blocks by the ids of those from which they were made by an earlier call, with these; grows.
        """
        known = {} if known is None else known
        for block in self._blocks[granularity]:
            if id(block) not in known:
                known[id(block)] = (block, block.with_cells(centroids.assign(block.take_codes(slice(None)))))
        divided = [known[id(block)][1] for block in self._blocks[granularity]]
        return VectorIndex(
            self.catalog,
            self._names,
            self._numbers,
            self._is_live,
            dict(self._blocks) | {granularity: divided},
            centroids=dict(self.centroids) | {granularity: centroids},
        )

    def train(self, granularity: str) -> Centroids:
        """Centroids for the rows of a granularity, at least one of them: the same ones for the same index."""
        num_cells = count_cells(self.count_rows(granularity))
        codes, _ = self.sample(granularity, num_cells * POINTS_A_CELL, seed=0)
        return train(codes, num_cells=min(num_cells, len(codes)), since=self.next_number)

    def sample(self, granularity: str, count: int, *, seed: int) -> tuple[Int8Array, list[tuple[str, int]]]:
        """Codes int8 [N, D] of ``count`` rows at most of a granularity, and the document and place of each."""
        blocks = [(block, self._living(block, headings=False)) for block in self._blocks[granularity]]
        living = [np.arange(len(block)) if mask is None else np.flatnonzero(mask) for block, mask in blocks]
        starts = np.cumsum([0, *(len(rows) for rows in living)])
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(starts[-1], min(count, int(starts[-1])), replace=False))
        parts: list[Int8Array] = []
        names: list[tuple[int, int]] = []
        for (block, _), rows, start in zip(blocks, living, starts, strict=False):
            part = rows[chosen[(chosen >= start) & (chosen < start + len(rows))] - start]
            parts.append(block.take_codes(part))
            names += zip(block.rows.docs[part].tolist(), block.rows.ordinals[part].tolist(), strict=True)
        return np.concatenate(parts), [(self._names[doc], ordinal) for doc, ordinal in names]

    def _keep(
        self, block: Block, rows: NDArray[np.int64], filters: Filters, by_document: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Those of some rows that a search is about."""
        living = self._living(block, headings=filters.headings)
        kept = rows if living is None else rows[living[rows]]
        if by_document is not None:
            kept = kept[by_document[block.rows.docs[kept]]]
        if filters.min_density is not None:
            kept = kept[block.rows.densities[kept].astype(np.float32) >= np.float32(filters.min_density)]
        return kept

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

    def _describe(self, best: Best, granularity: str) -> list[Found]:
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
