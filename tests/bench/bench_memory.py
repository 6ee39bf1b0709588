"""Peak memory of a backfill against the size of its corpus: it must stay within the budget, and flat.

    python tests/bench/bench_memory.py [--sizes 1 5 20 40] [--document-mib 1 4 12]

The corpus is the demo's, and then that again in other words, so that no segment repeats and nothing is left out by
reuse. The model is the default one cut to one layer and a narrow MLP, else this would take hours: width, vocabulary
and rows are the same, what is left out weighs 20 MB in bf16 and 40 MB in fp32. Every backfill is the command
``lodestream run`` in a process of its own; its peak is the kernel's count (VmHWM), mapped libraries included. The
same is measured of a single document of some sizes: the corpus end to end in one file.

Writes docs/bench/memory.jsonl and docs/memory.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path

import harness
from corpora import read_corpus, vary_corpus, write_files
from matplotlib.figure import Figure

from tests.support.memory import MemoryUse, cut_model, run_measured
from tests.support.workspace import Workspace

NAME = "memory"
FIGURE = Path(__file__).resolve().parents[2] / "docs" / "memory.png"
BUDGET_BYTES = 1 << 30
MIB = 1 << 20


def measure(size: int, texts: dict[str, str], model: Path, folder: Path) -> MemoryUse:
    """A backfill of ``size`` times the corpus."""
    workspace = Workspace.create(folder / f"work{size}")
    size_bytes = sum(write_files(vary_corpus(texts, copy), workspace.docs) for copy in range(size))
    return backfill(workspace, model, "peak memory", size, size_bytes)


def measure_document(size_mib: int, texts: dict[str, str], model: Path, folder: Path) -> MemoryUse:
    """A backfill of one document of about ``size_mib`` MiB."""
    workspace = Workspace.create(folder / f"document{size_mib}")
    parts: list[bytes] = []
    room = size_mib * MIB
    for copy in itertools.count():
        for text in vary_corpus(texts, copy).values():
            part = text.encode("utf-8") + b"\n\n"
            if len(part) > room:
                size_bytes = workspace.docs.joinpath("large.md").write_bytes(b"".join(parts))
                return backfill(workspace, model, "peak memory, one document", size_mib, size_bytes)
            parts.append(part)
            room -= len(part)
    raise AssertionError("copies never end")


def backfill(workspace: Workspace, model: Path, metric: str, x: int, size_bytes: int) -> MemoryUse:
    """Runs the command over a folder that is ready, and records its peak."""
    settings = ("--set", "run.executor=local", "--set", f"encoder.model={model}")
    use = run_measured(workspace.root, "run", "--json", *settings, timeout_s=3600)
    report = json.loads(use.output.splitlines()[-1])
    config = {
        "documents": report["documents"]["new"],
        "corpus_bytes": size_bytes,
        "tokens": report["tokens"]["total"],
        "tokens_encoded": report["tokens"]["encoded"],
        "seconds": round(use.seconds, 1),
        "budget_mib": BUDGET_BYTES // MIB,
        "model": "cut to one layer",
    }
    harness.record(NAME, "lodestream local", metric, "MiB", [use.peak_bytes / MIB], x=x, config=config)
    return use


def draw(uses: dict[int, MemoryUse]) -> None:
    """Peak by size of the corpus, and memory over each run."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(list(uses), [use.peak_bytes / MIB for use in uses.values()], "o-")
    left.set_xlabel("corpus (times the demo's)")
    left.set_ylabel("peak memory (MiB)")
    for size, use in uses.items():
        places = [seconds / use.seconds for seconds, _ in use.samples]
        right.plot(places, [rss / MIB for _, rss in use.samples], linewidth=1.2, label=f"{size} times")
    right.set_xlabel("share of the run")
    right.set_ylabel("memory (MiB)")
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.axhline(BUDGET_BYTES / MIB, color="black", linestyle="--", linewidth=0.9)
        axes.set_ylim(0, 1.15 * BUDGET_BYTES / MIB)
        axes.grid(alpha=0.3)
    left.text(min(uses), 1.02 * BUDGET_BYTES / MIB, "budget", fontsize=9)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5, 20, 40])
    parser.add_argument("--document-mib", type=int, nargs="*", default=[1, 4, 12])
    arguments = parser.parse_args()
    os.environ.pop("LODESTREAM_STREAMS", None)
    _, texts = read_corpus()
    harness.start(NAME)
    with tempfile.TemporaryDirectory() as scratch:
        model = cut_model(Path(scratch) / "model")
        uses = {size: measure(size, texts, model, Path(scratch)) for size in arguments.sizes}
        single = {size: measure_document(size, texts, model, Path(scratch)) for size in arguments.document_mib}
    draw(uses)
    largest = max(use.peak_bytes for use in (*uses.values(), *single.values()))
    print(f"budget {BUDGET_BYTES / MIB:.0f} MiB: {'kept' if largest <= BUDGET_BYTES else 'NOT KEPT'}")


if __name__ == "__main__":
    main()
