"""The library's way in: ``lodestream.open(path)`` and what can be asked of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lodestream.actors.featurizer import Featurizer
from lodestream.errors import NotFoundError
from lodestream.pipeline.config.settings import load_config
from lodestream.pipeline.search import Hit, search_snapshot
from lodestream.pipeline.session import options_of_recipe
from lodestream.schema import features_schema
from lodestream.storage.codec import decode_rows
from lodestream.storage.location import Location
from lodestream.storage.store import FeatureStore, Snapshot

CONFIG_NAME: Final = "lodestream.toml"


class Library:
    """A store opened for reading: search, features by document, export.

    Holds one published snapshot until ``refresh_snapshot`` is called; safe for several threads but for the first
    search, which loads the model.

    Example:
        >>> library = lodestream.open("lodestream.toml")
        >>> library.search("how are relative imports resolved?", limit=3)[0].doc_id
        'import.rst'
    """

    def __init__(self, store: FeatureStore, *, version: str | None = None) -> None:
        """Args:
        store: the store.
        version: a feature version beside the one that is served; its documents may lie behind.
        """
        self._store = store
        self._version = version
        self.snapshot: Snapshot = store.open_snapshot(version=version)
        self._featurizer: Featurizer | None = None

    @property
    def featurizer(self) -> Featurizer:
        """The featurizer that made the snapshot's features; loads its model on first use."""
        if self._featurizer is None:
            self._featurizer = Featurizer(options_of_recipe(self.snapshot.recipe, model=self.snapshot.model))
        return self._featurizer

    def refresh_snapshot(self) -> Snapshot:
        """Moves on to the latest published snapshot."""
        before = self.snapshot.feature_version
        self.snapshot = self._store.open_snapshot(version=self._version)
        if self.snapshot.feature_version != before:
            self._featurizer = None
        return self.snapshot

    def search(
        self,
        text: str,
        *,
        limit: int = 10,
        granularity: str = "paragraph",
        min_density: float | None = None,
        headings: bool = False,
    ) -> list[Hit]:
        """The spans nearest to ``text`` by cosine, best first.

        Args:
            text: the query.
            limit: number of hits.
            granularity: "sentence", "paragraph", "topic" or "document".
            min_density: leave out spans of lower density.
            headings: include paragraphs that are nothing but a heading.

        Raises:
            DocumentError: the query has no token.
        """
        return search_snapshot(
            self.snapshot,
            self.featurizer.embed(text),
            limit=limit,
            granularity=granularity,
            min_density=min_density,
            headings=headings,
        )

    def get(self, doc_id: str, *, granularity: str | None = None) -> pa.Table:
        """The feature rows of one document, of schema.features_schema(D).

        Raises:
            NotFoundError: there is no such document in the snapshot.
        """
        rows = self.snapshot.get_features(doc_id, granularity)
        if not rows.num_rows and self.snapshot.get_document(doc_id) is None:
            raise NotFoundError(
                f"there is no document {doc_id!r} in snapshot {self.snapshot.sequence}",
                "doc_ids are paths below the source's folder, as search prints them",
            )
        return rows

    def iter_vectors(self, *, batch_rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """All feature rows with ``vector`` (float32 [D], unit length) in place of codes and scale."""
        schema = features_schema(self.snapshot.dim)
        for batch in self.snapshot.scan_features(schema.names, batch_rows=batch_rows):
            yield decode_batch(batch)

    def export(self, path: Path) -> int:
        """Writes the published features with decoded vectors as Parquet; returns the number of rows.

        The file appears whole or not at all.
        """
        temporary = path.with_name(f".{path.name}.part")
        num_rows = 0
        try:
            with pq.ParquetWriter(temporary, export_schema(self.snapshot.dim), compression="zstd") as writer:
                for batch in self.iter_vectors():
                    writer.write_batch(batch)
                    num_rows += batch.num_rows
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return num_rows


def open(path: str | Path, *, options: Mapping[str, str] | None = None) -> Library:  # noqa: A001
    """Opens a store for reading.

    Args:
        path: a ``lodestream.toml``, a folder that holds one, or a store's own folder or URI.
        options: endpoint, region and credentials where ``path`` is the URI of an object store, as ``store.options``.

    Raises:
        StoreNotFound: there is no store, or nothing is published in it.
        ConfigError: the configuration is wrong.
    """
    if "://" in str(path):
        return Library(FeatureStore.open(Location.parse(path, options)))
    place = Path(path).expanduser()
    if place.is_file() or (place / CONFIG_NAME).is_file():
        file = place if place.is_file() else place / CONFIG_NAME
        return Library(FeatureStore.open(load_config(start=file.parent, file=file).store_location))
    return Library(FeatureStore.open(str(place)))


def export_schema(dim: int) -> pa.Schema:
    """Schema of exported rows: that of ``features`` with ``vector`` in place of codes and scale."""
    kept = [field for field in features_schema(dim) if field.name not in ("codes", "scale")]
    return pa.schema([*kept, pa.field("vector", pa.list_(pa.float32(), dim))])


def decode_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of export_schema from one of features_schema."""
    codes = batch.column("codes").flatten().to_numpy().reshape(batch.num_rows, -1)
    vectors = decode_rows(codes, batch.column("scale").to_numpy(zero_copy_only=False))
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    schema = export_schema(codes.shape[1])
    columns = [batch.column(name) for name in schema.names if name != "vector"]
    vector = pa.FixedSizeListArray.from_arrays(flat, codes.shape[1])
    return pa.RecordBatch.from_arrays([*columns, vector.cast(schema.field("vector").type)], schema=schema)


def rows_as_json(rows: pa.Table, *, vectors: bool) -> list[dict[str, Any]]:
    """Feature rows as JSON values: bytes in hex, times in ISO 8601, ``vector`` as floats where asked for."""
    if vectors:
        batches = [decode_batch(batch) for batch in rows.to_batches()]
        rows = pa.Table.from_batches(batches) if batches else rows.drop_columns(["codes", "scale"])
    else:
        rows = rows.drop_columns(["codes", "scale"])
    return [{name: _as_json(value) for name, value in row.items()} for row in rows.to_pylist()]


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, np.generic):
        return value.item()
    return value
