"""The texts that benchmarks run on: the streams of real edits where their folder is given, else the demo's corpus."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lodestream.actors.paragraphs import TextFormat, split_paragraphs, text_format_of

ROOT = Path(__file__).resolve().parents[2]

_LONG_WORD = re.compile(r"[A-Za-z]{5,}")


def read_corpus(stream: str = "stream_peps_12m.parquet") -> tuple[str, dict[str, str]]:
    """(name of the corpus, text by file name)."""
    folder = os.environ.get("LODESTREAM_STREAMS", "")
    path = Path(folder) / stream
    if folder and path.is_file():
        table = pq.read_table(path, columns=["op", "id", "text"])
        base = table.filter(pc.equal(table.column("op"), "BASE"))
        texts = dict(zip(base.column("id").to_pylist(), base.column("text").to_pylist(), strict=True))
        return f"BASE rows of {stream}", texts
    sys.path.insert(0, str(ROOT / "examples"))
    from demo_corpus import read_readmes, topics

    texts = {f"readmes/{name}": text for name, text in read_readmes().items()}
    return "demo corpus", texts | {f"python/{name}.rst": text for name, text in topics.items()}


def read_paragraphs(texts: dict[str, str], *, limit: int, min_chars: int = 40) -> list[str]:
    """Every so many paragraphs of a corpus, ``limit`` of them, spread evenly."""
    paragraphs = []
    for name, text in texts.items():
        text_format: TextFormat = text_format_of(name)
        for paragraph in split_paragraphs(text, text_format):
            if paragraph.char_end - paragraph.char_start >= min_chars:
                paragraphs.append(text[paragraph.char_start : paragraph.char_end])
    step = max(1, len(paragraphs) // limit)
    return paragraphs[::step][:limit]


def write_files(texts: dict[str, str], folder: Path) -> int:
    """Writes a corpus as files; returns their bytes."""
    size_bytes = 0
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        body = text.encode("utf-8")
        path.write_bytes(body)
        size_bytes += len(body)
    return size_bytes


def vary_corpus(texts: dict[str, str], copy: int) -> dict[str, str]:
    """A corpus of the same build in other words: no paragraph of it is one of ``texts`` or of another ``copy``.

    Every word of five and more letters gives way to another of the corpus' own, always the same one within a copy.
    """
    if not copy:
        return texts
    words = sorted({word for text in texts.values() for word in _LONG_WORD.findall(text)})
    other = dict(zip(words, words[copy * 7919 % len(words) :] + words, strict=False))
    return {
        f"copy{copy}/{name}": _LONG_WORD.sub(lambda found: other[found.group()], text) for name, text in texts.items()
    }
