"""The sources that a configuration names. A kind's module is imported when a source of it is opened: what reads
PostgreSQL need not load what reads a lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.config.sources import (
    DeltaSource,
    FilesSource,
    JsonLinesSource,
    LanceSource,
    ObjectsSource,
    ParquetSource,
    PostgresSource,
    SqliteSource,
)
from lodestream.pipeline.sources.protocol import Source

if TYPE_CHECKING:
    from lodestream.pipeline.sources.lake import LakePlace


def open_source(loaded: LoadedConfig, name: str) -> Source:
    """The source of that name; nothing is connected or looked at yet."""
    config = loaded.config.sources[name]
    prefix_ids = len(loaded.config.sources) > 1
    match config:
        case FilesSource():
            from lodestream.pipeline.sources.files import FilesFolder

            return FilesFolder(name, config, loaded.folder, prefix_ids=prefix_ids)
        case ObjectsSource():
            from lodestream.pipeline.sources.objects import ObjectsPrefix

            return ObjectsPrefix(name, config, prefix_ids=prefix_ids)
        case PostgresSource():
            from lodestream.pipeline.sources.postgres import PostgresTable

            return PostgresTable(name, config, prefix_ids=prefix_ids)
        case ParquetSource() | JsonLinesSource():
            from lodestream.pipeline.sources.row_files import RowFiles

            return RowFiles(name, config, loaded.folder, prefix_ids=prefix_ids)
        case DeltaSource():
            from lodestream.pipeline.sources.delta import DeltaOpener
            from lodestream.pipeline.sources.lake import LakeRows

            return LakeRows(name, config, DeltaOpener(_describe_lake(loaded, name, config)), prefix_ids=prefix_ids)
        case LanceSource():
            from lodestream.pipeline.sources.lake import LakeRows
            from lodestream.pipeline.sources.lance_rows import LanceOpener

            return LakeRows(name, config, LanceOpener(_describe_lake(loaded, name, config)), prefix_ids=prefix_ids)
        case SqliteSource():
            from lodestream.pipeline.sources.sqlite import SqliteTable

            return SqliteTable(name, config, loaded.folder, prefix_ids=prefix_ids)


def open_sources(loaded: LoadedConfig) -> dict[str, Source]:
    """All sources by name, in the order of the configuration."""
    return {name: open_source(loaded, name) for name in loaded.config.sources}


def _describe_lake(loaded: LoadedConfig, name: str, config: DeltaSource | LanceSource) -> LakePlace:
    from lodestream.pipeline.sources.lake import LakePlace, resolve_uri

    return LakePlace(
        source=name,
        uri=resolve_uri(config.uri, loaded.folder),
        id_column=config.id_column,
        text_column=config.text_column,
        options=dict(config.options),
    )
