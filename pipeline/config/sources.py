"""Settings of the sources: one section per kind, told apart by ``kind`` (``files`` where it is left out).

To add a kind: a section with ``kind: Literal["..."]`` a member of ``SourceConfig`` with that word as its tag
(``A | B`` in the outer Annotated), and a line in ``SOURCE_KINDS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Tag

from lodestream.pipeline.config.types import Duration, Encoding, Patterns, Section, Size, TableName, Text
from lodestream.pipeline.sizes import MIB

DEFAULT_KIND: Final = "files"
DEFAULT_INCLUDE: Final = ("**/*.md", "**/*.markdown", "**/*.rst", "**/*.txt", "**/*.html", "**/*.htm")


class FilesSource(Section):
    """A folder of text files.

    ``path``                the folder, relative to the folder of ``lodestream.toml``
    ``include, exclude``    glob patterns on the path below ``path``; a file is read if one of the first and none of the
                            second matches
    ``encoding``            what all files are in; ``auto`` takes UTF-8, what a byte order mark or an HTML page says and
                            what leaves no doubt, and sets the others aside
    ``max_document_bytes``  larger files go to quarantine
    ``follow_symlinks``     whether links are followed, inside ``path`` only
    """

    kind: Literal["files"] = "files"
    path: Text
    include: Patterns = DEFAULT_INCLUDE
    exclude: Patterns = ()
    encoding: Encoding = "auto"
    max_document_bytes: Size = 12 * MIB
    follow_symlinks: bool = True

    @property
    def place(self) -> str:
        """Where the documents are, for messages."""
        return f"{self.path} ({', '.join(self.include)})"


class ObjectsSource(Section):
    """The objects below a prefix of an object store.

    ``uri``      ``s3://bucket/folder``, ``gs://...`` or ``az://...``
    ``options``  such as ``aws_endpoint``; what is not given is taken from the environment (``AWS_ACCESS_KEY_ID``, ...)
    The others are those of a folder.
    """

    kind: Literal["objects"]
    uri: Text
    options: Mapping[str, Text] = {}
    include: Patterns = DEFAULT_INCLUDE
    exclude: Patterns = ()
    encoding: Encoding = "auto"
    max_document_bytes: Size = 12 * MIB

    @property
    def place(self) -> str:
        """Where the documents are, for messages."""
        return f"{self.uri} ({', '.join(self.include)})"


class TableSection(Section):
    """What sources whose rows are documents have in common.

    ``id_column``           names a row's document; unique
    ``text_column``         its text
    ``text_format``         what the text is: ``text``, ``markdown``, ``rst`` or ``html``
    ``max_document_bytes``  larger texts go to quarantine
    """

    id_column: Text = "id"
    text_column: Text = "text"
    text_format: Literal["text", "markdown", "rst", "html"] = "text"
    max_document_bytes: Size = 12 * MIB


class PostgresSource(TableSection):
    """A table or view of PostgreSQL; names are taken as they are written, capitals included.

    ``url``              ``postgresql://user@host/database``; a password is better kept in ``~/.pgpass``
    ``table``            ``table`` or ``schema.table``
    ``mode``             how changes are found; ``auto`` takes the best that loses nothing (``lodestream check`` says
                         which and why)
    ``xid_column``       of type xid8: the transaction that wrote the row last
    ``updated_column``   when the row was written last
    ``tombstone_table``  has the ids of deleted rows in ``id_column``, and ``xid_column`` or ``updated_column``; without
                         it deletes show when all rows are looked at
    ``lookback``         in mode lookback: how long before the cursor rows are read again; longer than any transaction
    ``sweep_every``      how often all rows are looked at; ``0s`` never
    """

    kind: Literal["postgres"]
    url: Text
    table: TableName
    mode: Literal["auto", "xid", "holdback", "lookback", "scan"] = "auto"
    xid_column: str = ""
    updated_column: str = ""
    tombstone_table: str = ""
    lookback: Duration = 900.0
    sweep_every: Duration = 86400.0

    @property
    def place(self) -> str:
        """Where the documents are, for messages."""
        return f"the table {self.table}"


class SqliteSource(TableSection):
    """A table or view of a SQLite file.

    ``path``            the file, relative to the folder of ``lodestream.toml``
    ``table``           its name, as it is written
    ``mode``            how changes are found; ``auto`` takes the log, else the updated column, else a scan
    ``log_table``       into which triggers write every change: ``seq INTEGER PRIMARY KEY AUTOINCREMENT, id``
    ``updated_column``  when the row was written last: text that SQLite reads as a time, or seconds since 1970
    ``lookback``        in mode lookback: how long before the cursor rows are read again; longer than any transaction
    ``sweep_every``     how often all rows are looked at; ``0s`` never
    """

    kind: Literal["sqlite"]
    path: Text
    table: Text
    mode: Literal["auto", "log", "lookback", "scan"] = "auto"
    log_table: str = ""
    updated_column: str = ""
    lookback: Duration = 900.0
    sweep_every: Duration = 86400.0

    @property
    def place(self) -> str:
        """Where the documents are, for messages."""
        return f"the table {self.table} of {self.path}"


class RowFilesSection(TableSection):
    """What folders of files whose rows are documents have in common.

    ``path``              the folder, relative to the folder of ``lodestream.toml``
    ``include, exclude``  glob patterns on the path below ``path``
    """

    path: Text
    include: Patterns
    exclude: Patterns = ()

    @property
    def place(self) -> str:
        """Where the documents are, for messages."""
        return f"{self.path} ({', '.join(self.include)})"


class ParquetSource(RowFilesSection):
    """A folder of Parquet files."""

    kind: Literal["parquet"]
    include: Patterns = ("**/*.parquet",)


class JsonLinesSource(RowFilesSection):
    """A folder of JSON Lines files, UTF-8, an object a line; columns are members of the objects."""

    kind: Literal["jsonl"]
    include: Patterns = ("**/*.jsonl", "**/*.ndjson")


class LakeSection(TableSection):
    """What tables with versions have in common.

    ``uri``      a folder, relative to the folder of ``lodestream.toml``, or a URI such as ``s3://bucket/table``
    ``options``  of the object store, such as ``aws_endpoint``; secrets are better left to the environment
    """

    uri: Text
    options: Mapping[str, Text] = {}

    @property
    def place(self) -> str:
        """Where the documents are, for messages."""
        return self.uri


class DeltaSource(LakeSection):
    """A Delta table."""

    kind: Literal["delta"]


class LanceSource(LakeSection):
    """A Lance table."""

    kind: Literal["lance"]


def _read_kind(section: Any) -> str | None:
    kind = section.get("kind", DEFAULT_KIND) if isinstance(section, dict) else getattr(section, "kind", DEFAULT_KIND)
    return kind if isinstance(kind, str) else None


SourceConfig = Annotated[
    Annotated[FilesSource, Tag("files")]
    | Annotated[ObjectsSource, Tag("objects")]
    | Annotated[PostgresSource, Tag("postgres")]
    | Annotated[SqliteSource, Tag("sqlite")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[JsonLinesSource, Tag("jsonl")]
    | Annotated[DeltaSource, Tag("delta")]
    | Annotated[LanceSource, Tag("lance")],
    Discriminator(_read_kind),
]

SOURCE_KINDS: Final[dict[str, type[Section]]] = {
    "files": FilesSource,
    "objects": ObjectsSource,
    "postgres": PostgresSource,
    "sqlite": SqliteSource,
    "parquet": ParquetSource,
    "jsonl": JsonLinesSource,
    "delta": DeltaSource,
    "lance": LanceSource,
}
"""The section of each kind."""
