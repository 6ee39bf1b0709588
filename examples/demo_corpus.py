"""A small real corpus from what is installed: what the packages say of themselves, and Python's language reference.

    python examples/demo_corpus.py FOLDER

Nothing is fetched. ``readmes/`` are the descriptions that the packages carry in their metadata, ``packages/`` the
Markdown files among what they install (guides and licences), ``python/`` the language reference behind ``help()``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

_SUFFIXES = {"text/markdown": ".md", "text/x-rst": ".rst", "text/plain": ".txt"}


def build_corpus(folder: Path) -> dict[str, int]:
    """Writes the corpus into ``folder`` (made where it is missing); returns the number of documents by suffix."""
    files = {f"readmes/{name}": text for name, text in read_readmes().items()}
    files |= {f"packages/{name}": text for name, text in read_markdown_files(set(files.values())).items()}
    files |= {f"python/{topic}.rst": text for topic, text in topics.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Counter(Path(name).suffix for name in files)


def read_readmes() -> dict[str, str]:
    """The description of every installed distribution that has one, by file name."""
    readmes = {}
    for distribution in metadata.distributions():
        info = distribution.metadata
        text = str(info.get_payload() or info.get("Description") or "").strip()
        if not text or text == "UNKNOWN":
            continue
        content_type = str(info.get("Description-Content-Type") or "text/plain").split(";")[0].strip().lower()
        suffix = _SUFFIXES.get(content_type, ".txt")
        readmes[_name(distribution) + suffix] = text + "\n"
    return dict(sorted(readmes.items()))


def read_markdown_files(known: set[str]) -> dict[str, str]:
    """The Markdown files that the distributions install, by distribution and name; equal ones once, ``known`` never."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            if file.suffix.lower() not in (".md", ".markdown") or ".." in file.parts:
                continue
            try:
                text = file.read_text(encoding="utf-8").strip() + "\n"
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip() and text not in known:
                known.add(text)
                found[f"{_name(distribution)}/{file}"] = text
    return dict(sorted(found.items()))


def _name(distribution: metadata.Distribution) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", str(distribution.metadata["Name"]).lower())


def describe(numbers: Mapping[str, int]) -> str:
    """``283 documents (104 Markdown, 140 reStructuredText, 39 plain text)``."""
    kinds = {".md": "Markdown", ".rst": "reStructuredText", ".txt": "plain text"}
    counted = ", ".join(f"{numbers[suffix]} {kind}" for suffix, kind in kinds.items() if numbers.get(suffix))
    return f"{sum(numbers.values())} documents ({counted})"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo_corpus.py FOLDER")
    print(f"wrote {describe(build_corpus(Path(sys.argv[1])))} to {sys.argv[1]}")
