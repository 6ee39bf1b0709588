"""The first ``lodestream.toml`` of each kind of source. Lines that begin with ``#`` show the defaults."""

from __future__ import annotations

import json
from typing import Final, Literal

Template = Literal["files", "jsonl", "parquet", "postgres", "sqlite", "delta", "lance", "objects"]

_TABLE: Final = """\
id_column = "id"                    # unique
text_column = "text"
# text_format = "text"              # or "markdown", "rst", "html"
# max_document_bytes = "12MiB"      # larger texts are set aside, with the reason
"""

_FILES: Final = """\
# include = ["**/*.md", "**/*.markdown", "**/*.rst", "**/*.txt", "**/*.html", "**/*.htm"]
# exclude = []
# encoding = "auto"                 # or what all files are in, such as "windows-1252"
# max_document_bytes = "12MiB"      # larger files are set aside, with the reason
"""

_SOURCES: Final[dict[Template, str]] = {
    "files": f"[sources.docs]\npath = @PLACE@\n{_FILES}",
    "objects": (
        '[sources.docs]\nkind = "objects"\nuri = @PLACE@\n'
        '# options = {}                      # aws_endpoint = "https://...", aws_region = "..."\n'
        f"{_FILES}"
    ),
    "jsonl": f'[sources.docs]\nkind = "jsonl"                      # one JSON object a line\npath = @PLACE@\n{_TABLE}',
    "parquet": f'[sources.docs]\nkind = "parquet"\npath = @PLACE@\n{_TABLE}',
    "delta": f'[sources.docs]\nkind = "delta"\nuri = @PLACE@\n{_TABLE}',
    "lance": f'[sources.docs]\nkind = "lance"\nuri = @PLACE@\n{_TABLE}',
    "sqlite": (
        f'[sources.docs]\nkind = "sqlite"\npath = @PLACE@\ntable = "docs"\n{_TABLE}'
        '# mode = "auto"                     # or "log", "lookback", "scan"; `lodestream check` says which, and why\n'
        '# log_table = ""                    # into which triggers write every change\n'
        '# updated_column = ""               # when the row was written last\n'
    ),
    "postgres": (
        '[sources.docs]\nkind = "postgres"\nurl = @PLACE@  # the password in ~/.pgpass\ntable = "public.docs"\n'
        f"{_TABLE}"
        '# mode = "auto"                     # or "xid", "holdback", "lookback", "scan"; `lodestream check` says why\n'
        '# xid_column = ""                   # of type xid8: exact, and any role may read it\n'
        '# updated_column = ""               # when the row was written last\n'
        '# tombstone_table = ""              # ids of deleted rows; without it deletes show once a day\n'
    ),
}

_PLACES: Final[dict[Template, str]] = {
    "objects": "s3://bucket/docs",
    "delta": "docs.delta",
    "lance": "docs.lance",
    "sqlite": "docs.db",
    "postgres": "postgresql://reader@localhost/app",
}
FOLDERS: Final[tuple[Template, ...]] = ("files", "jsonl", "parquet")
"""Templates whose place is an existing folder."""


def write_source(template: Template, place: str | None) -> str:
    """The section of a source.

    Args:
        template: its kind.
        place: the folder, file or address; None takes an example.
    """
    chosen = _PLACES.get(template, ".") if place is None else place
    return _SOURCES[template].replace("@PLACE@", _quote_toml(chosen))


def _quote_toml(text: str) -> str:
    """A TOML basic string. JSON escapes all that TOML wants escaped, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
