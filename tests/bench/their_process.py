"""Speaks to sentence_transformers_worker.py, which runs in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from harness import Timing

from lodestream.actors.models import DEFAULT_MODEL, find_model

# Precision and batch size: sentence-transformers' default, and what else was the fastest for a kind of text.
SETTINGS = {"default": ("fp32", 32), "fp32 batch 8": ("fp32", 8), "bf16 batch 8": ("bf16", 8)}


class Theirs:
    """sentence-transformers in its own process and environment; ``versions`` of its packages by name."""

    def __init__(self, python: str, *, num_threads: int) -> None:
        worker = Path(__file__).with_name("sentence_transformers_worker.py")
        folder, _ = find_model(DEFAULT_MODEL)
        self.process = subprocess.Popen(
            [python, str(worker), str(folder), str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def encode(self, texts: list[str], *, setting: str, max_tokens: int, out: str | None = None) -> Timing:
        """What it took in the other process; the vectors go to the file ``out``."""
        precision, batch_size = SETTINGS[setting]
        request = {"texts": texts, "batch_size": batch_size, "precision": precision, "max_seq_length": max_tokens}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request | {"out": out}) + "\n")
        self.process.stdin.flush()
        return Timing(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the worker of sentence-transformers ended; run it by hand to see why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
