"""Settings of the sources: one section per kind, told apart by ``kind`` (``files`` where it is left out).

To add a kind: a section with ``kind: Literal["..."]`` a member of ``SourceConfig`` with that word as its tag
(``A | B`` in the outer Annotated), and a line in ``SOURCE_KINDS``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Tag

from lodestream.pipeline.config_types import Encoding, Patterns, Section, Size, Text
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
    max_document_bytes: Size = 16 * MIB
    follow_symlinks: bool = True


def _read_kind(section: Any) -> str | None:
    kind = section.get("kind", DEFAULT_KIND) if isinstance(section, dict) else getattr(section, "kind", DEFAULT_KIND)
    return kind if isinstance(kind, str) else None


SourceConfig = Annotated[Annotated[FilesSource, Tag("files")], Discriminator(_read_kind)]

SOURCE_KINDS: Final[dict[str, type[Section]]] = {"files": FilesSource}
"""The section of each kind."""
