"""A small real corpus from what is installed: the READMEs of the distributions and Python's language reference.

    python examples/demo_corpus.py FOLDER

Nothing is fetched: the READMEs are the descriptions that the packages carry in their metadata, and the language
reference is the one behind Python's ``help()``.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

_SUFFIXES = {"text/markdown": ".md", "text/x-rst": ".rst", "text/plain": ".txt"}


def build_corpus(folder: Path) -> int:
    """Writes the corpus into ``folder`` (made where it is missing); returns the number of documents."""
    files = {f"readmes/{name}": text for name, text in read_readmes().items()}
    files |= {f"python/{topic}.rst": text for topic, text in topics.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return len(files)


def read_readmes() -> dict[str, str]:
    """The description of every installed distribution that has one, by file name."""
    readmes = {}
    for distribution in metadata.distributions():
        info = distribution.metadata
        name = re.sub(r"[^a-z0-9.]+", "-", str(info["Name"]).lower())
        text = str(info.get_payload() or info.get("Description") or "").strip()
        if not text or text == "UNKNOWN":
            continue
        content_type = str(info.get("Description-Content-Type") or "text/plain").split(";")[0].strip().lower()
        suffix = _SUFFIXES.get(content_type, ".txt")
        readmes[name + suffix] = text + "\n"
    return dict(sorted(readmes.items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo_corpus.py FOLDER")
    print(f"wrote {build_corpus(Path(sys.argv[1]))} documents to {sys.argv[1]}")
