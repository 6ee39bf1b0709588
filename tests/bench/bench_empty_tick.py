"""What a refresh costs that finds nothing to do: a folder of many unchanged files, each listed and none opened.

The store is filled with rows made up for the files (the encoder has no part in this); the refresh is the command as a
scheduler starts it, so that the start of the interpreter counts.

    python tests/bench/bench_empty_tick.py [NUM_FILES]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from harness import record, start

from lodestream.pipeline.config.settings import LoadedConfig, load_config, write_initial_config
from lodestream.pipeline.plan import make_plan
from lodestream.pipeline.states import build_state_rows
from lodestream.schema import DOCUMENTS_SCHEMA, features_schema
from lodestream.storage.store import FeatureStore
from tests.support.memory import run_measured

NAME = "empty_tick_files"
NUM_FILES = 100_000
MIB = 1 << 20
FILES_PER_FOLDER = 500
WRITTEN_S = 1.7e9
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
"""In the environment of what is timed: the bytecode is there, as that of an installed package is."""
ROUNDS = 3
COUNT_OPENED = """
import sys
opened = set()
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith(".md") and opened.add(args[0]))
from lodestream.pipeline.cli.app import main
sys.argv = ["lodestream", "refresh"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("opened", len(opened), "torch" in sys.modules)
"""


def write_files(folder: Path, number: int) -> None:
    """Small files, written long ago."""
    for place in range(number):
        path = folder / f"{place // FILES_PER_FOLDER:04}" / f"{place:06}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Note {place} on the tides of the northern coast.\n")
        os.utime(path, (WRITTEN_S, WRITTEN_S))


def fill_store(loaded: LoadedConfig) -> None:
    """Publishes a document row and a state row for every file, as a backfill would leave them."""
    plan = make_plan(loaded)
    now, version = datetime.now(UTC), plan.featurizer.feature_version
    reads = plan.reads()
    outcomes = [
        {
            "doc_id": read.candidate.doc_id,
            "source": read.candidate.source,
            "content_hash": bytes(32),
            "source_version": read.candidate.state.version,
            "size_bytes": read.candidate.state.size_bytes,
            "mtime_ns": read.candidate.state.mtime_ns,
            "ctime_ns": read.candidate.state.ctime_ns,
            "object_id": read.candidate.state.object_id,
            "quarantine_reason": None,
        }
        for read in reads
    ]
    documents = [
        {name: outcome[name] for name in ("doc_id", "source", "content_hash", "source_version")}
        | {"uri": "", "feature_version": version, "title": "", "text": "", "updated_at": now, "run_id": "bench"}
        | dict.fromkeys(("num_tokens", "num_segments", "num_topics", "num_paragraphs", "num_sentences"), 0)
        for outcome in outcomes
    ]
    dim = plan.featurizer.model.dim
    store = FeatureStore.open_or_create(loaded.store_location, dim=dim)
    with store.open_lease("benchmark") as lease:
        transaction = store.begin(
            lease=lease, run_id="bench", kind="backfill", feature_version=version, recipe=plan.featurizer.recipe
        )
        transaction.write_chunk(
            features=features_schema(dim).empty_table(),
            documents=pa.Table.from_pylist(documents, schema=DOCUMENTS_SCHEMA),
            deleted_doc_ids=(),
            source_state=build_state_rows(outcomes, {}, run_id="bench"),
        )
        transaction.publish(
            checkpoint={survey.name: survey.checkpoint() for survey in plan.surveys},
            run={"documents": {"quarantined": 0}},
        )


def time_command(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds from a command's start to its end, and seconds of processor time: what else runs on the machine hardly
    changes the latter."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {**os.environ, **COMPILED}
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True, env=environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used_s


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_FILES
    start(NAME)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "docs", number)
        write_initial_config(folder, source_path="docs")
        fill_store(load_config(start=folder, environ={}))
        done = subprocess.run([sys.executable, "-c", COUNT_OPENED], cwd=folder, check=True, capture_output=True)
        last = done.stdout.decode().splitlines()[-1]
        assert last == "opened 0 False", last
        find = "import subprocess; subprocess.run(['find', 'docs', '-newer', 'lodestream.toml'])"
        commands = {
            "lodestream refresh": ("-m", "lodestream", "refresh"),
            "python -c pass": ("-c", "pass"),
            "find -newer": ("-c", find),
        }
        times: dict[str, list[tuple[float, float]]] = {provider: [] for provider in commands}
        for _ in range(ROUNDS):
            for provider, arguments in commands.items():
                times[provider].append(time_command(folder, *arguments))
        peak_mib = [run_measured(folder, "refresh", interval_s=0.01).peak_bytes / MIB for _ in range(ROUNDS)]
        record(NAME, "lodestream refresh", "peak memory", "MiB", peak_mib, x=number, config={"files_opened": 0})
        for place, metric in enumerate(("whole command", "processor time")):
            for provider, values in times.items():
                seconds = [value[place] for value in values]
                record(NAME, provider, metric, "s", seconds, x=number, config={"files_opened": 0})


if __name__ == "__main__":
    main()
