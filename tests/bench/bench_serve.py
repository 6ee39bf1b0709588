"""The endpoint under load, in both forms, each against a bare FastAPI echo in the same form and the same minute.

    reads        one id, 100 ids, search, encode: with one caller (what an answer takes), with eight (how many a second)
    processor    what an answer takes of the processor
    publishing   reads while a loop publishes snapshots, and while a refresh encodes beside them at low priority
    memory       ten minutes of mixed load

The load comes from wrk on the same machine (http_load.py). What the machine does besides disturbs all alike: the ratio
to the echo is what carries over. ``x`` of a line is the form ("uvicorn", "Ray Serve").

    python tests/bench/bench_serve.py [reads] [processor] [publishing] [memory] [FOLDER/]

A folder that is given keeps the store for another run.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from corpora import read_corpus, read_paragraphs, write_files
from harness import measure_time, record, start
from http_load import UNIQUE, HttpRequest, Load, run_load

from lodestream.pipeline.config.settings import load_config, write_initial_config
from lodestream.pipeline.library import Library
from lodestream.storage.store import FeatureStore

NAME = "serve"
NUM_DOCUMENTS = 150
MAX_DOCUMENT_CHARS = 3000
ROUNDS = 3
LOAD_S = 2  # wrk takes whole seconds
ECHO = Path(__file__).with_name("echo_server.py")
FORMS = ("uvicorn", "Ray Serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that was started here."""

    form: str
    url: str
    process: subprocess.Popen[str]


@contextmanager
def start_server(form: str, command: Sequence[str], folder: Path) -> Iterator[Server]:
    """A server that prints its address when it is ready."""
    environ = {**os.environ, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
        )
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            url = next((word for word in line.split() if word.startswith("http://")), "")
            if url:
                break
        if not url:
            raise SystemExit(f"{command} did not start: see {folder / 'server.log'}")
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        try:
            yield Server(form=form, url=url, process=process)
        finally:
            process.terminate()
            process.wait(120)
            drain.join()


def serve(form: str, folder: Path) -> list[str]:
    """The command that serves the store in ``folder``."""
    options = ["--ray", "--replicas", "1"] if form == "Ray Serve" else []
    return [sys.executable, "-m", "lodestream", "serve", "--port", "0", *options]


def echo(form: str) -> list[str]:
    """The command that serves a bare FastAPI application."""
    return [sys.executable, str(ECHO), *(["--ray"] if form == "Ray Serve" else [])]


def build_store(folder: Path) -> list[str]:
    """A store of real documents, unless there is one; returns their ids."""
    name, texts = read_corpus()
    short = {key: text for key, text in sorted(texts.items()) if 300 < len(text) < MAX_DOCUMENT_CHARS}
    chosen = dict(list(short.items())[:NUM_DOCUMENTS])
    if not (folder / "docs").exists():
        write_files(chosen, folder / "docs")
        write_initial_config(folder, source_path="docs")
    subprocess.run(
        [sys.executable, "-m", "lodestream", "run"], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=900
    )
    print(f"{len(chosen)} documents of the {name}", flush=True)
    return list(chosen)


def make_requests(ids: Sequence[str]) -> dict[str, list[HttpRequest]]:
    """What is asked, by the name of the measurement. No query or text comes twice, and the store has none of them."""
    paragraphs = read_paragraphs(read_corpus()[1], limit=2000)
    queries = [" ".join(text.split()[:8]) for text in paragraphs]
    chosen = random.Random(7)
    document = {"granularities": ["document"], "encoding": "base64"}
    embed = {"model": "lodestream", "encoding_format": "base64"}
    bodies = {
        "get one id": ("/v1/features:get", [{"ids": [name], **document} for name in ids]),
        "get 100 ids": ("/v1/features:get", [{"ids": chosen.sample(list(ids), 100), **document} for _ in range(32)]),
        "search": ("/v1/search", [{"query": f"{query} {UNIQUE}"} for query in queries]),
        "encode": ("/v1/embeddings", [{"input": f"{text[:200]} {UNIQUE}", **embed} for text in paragraphs]),
    }
    return {name: [HttpRequest(path=path, body=body) for body in some] for name, (path, some) in bodies.items()}


def record_load(loads: Mapping[str, Sequence[Load]], form: str, connections: int) -> None:
    """Files what came of one kind of request and of the echo beside it."""
    config = {"connections": connections, "form": form, "load_average": round(os.getloadavg()[0], 1)}
    echoes = loads["echo"]
    for name, found in loads.items():
        who = "bare FastAPI" if name == "echo" else "lodestream"
        for quantile in ("p50_ms", "p99_ms"):
            values = [getattr(load, quantile) for load in found]
            record(NAME, who, f"{name}, {connections} callers, {quantile[:3]}", "ms", values, x=form, config=config)
        rates = [load.per_s for load in found]
        record(NAME, who, f"{name}, {connections} callers", "requests/s", rates, x=form, config=config)
        failed = sum(load.failed for load in found)
        if failed or any(not load.requests for load in found):
            raise SystemExit(f"{name}: {failed} requests failed")
        if name != "echo":
            ratios = [own.p50_ms / other.p50_ms for own, other in zip(found, echoes, strict=True)]
            record(NAME, who, f"{name}, {connections} callers, p50 / echo", "x", ratios, x=form, config=config)
            more = [own.p50_ms - other.p50_ms for own, other in zip(found, echoes, strict=True)]
            record(NAME, who, f"{name}, {connections} callers, p50 - echo", "ms", more, x=form, config=config)


def measure_reads(folder: Path, ids: Sequence[str]) -> None:
    """Every kind of request in both forms."""
    requests = make_requests(ids)
    library = Library(FeatureStore.open(str(load_config(start=folder).store_location)))
    library.get(ids[0], granularity="document")
    for form in FORMS:
        with ExitStack() as stack:
            own = stack.enter_context(start_server(form, serve(form, folder), folder))
            bare = stack.enter_context(start_server(form, echo(form), folder))
            for wanted in requests.values():
                run_load(own.url, wanted, seconds=1, connections=4)
            for connections in (1, 8):
                for name, wanted in requests.items():
                    loads: dict[str, list[Load]] = {"echo": [], name: []}
                    for _ in range(ROUNDS):
                        body = [HttpRequest(path="/echo", body=request.body) for request in wanted[:64]]
                        loads["echo"].append(run_load(bare.url, body, seconds=LOAD_S // 2, connections=connections))
                        loads[name].append(run_load(own.url, wanted, seconds=LOAD_S, connections=connections))
                    record_load(loads, form, connections)
            if form == "uvicorn":
                times = [
                    measure_time(lambda name=name: library.get(name, granularity="document")).seconds * 1000  # type: ignore[misc]
                    for name in ids
                ]
                record(NAME, "lodestream", "library.get in process, p50", "ms", [statistics.median(times)])


def measure_processor(folder: Path, ids: Sequence[str]) -> None:
    """Processor time of an answer, of all processes of the server: what a busy machine disturbs least."""
    for form in FORMS:
        with ExitStack() as stack:
            own = stack.enter_context(start_server(form, serve(form, folder), folder))
            bare = stack.enter_context(start_server(form, echo(form), folder))
            small = make_requests(ids)["get one id"]
            kinds = {"echo": (bare, [HttpRequest(path="/echo", body=small[0].body)])}
            kinds |= {name: (own, wanted) for name, wanted in make_requests(ids).items()}
            for name, (server, wanted) in kinds.items():
                run_load(server.url, wanted, seconds=1, connections=4)
                values = []
                for _ in range(ROUNDS):
                    before = sum_processor_s(server)
                    load = run_load(server.url, wanted, seconds=LOAD_S, connections=1)
                    values.append((sum_processor_s(server) - before) / load.requests * 1000)
                who = "bare FastAPI" if name == "echo" else "lodestream"
                record(NAME, who, f"{name}, processor time", "ms", values, x=form, config={"form": form})


def sum_processor_s(server: Server) -> float:
    """Processor time that the processes of a server have used so far."""
    root = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def publish_forever(folder: Path, stop: threading.Event, *, encode: bool, published: list[float]) -> None:
    """Edits a document and refreshes, again and again; at low priority and with one thread. ``encode``: long edits, so
    that the encoder is at work nearly all the time."""
    place = folder / "docs" / "changing.md"
    number = 0
    while not stop.is_set():
        number += 1
        words = [f"word{number}x{index}" for index in range(4000 if encode else 5)]
        place.write_text("\n\n".join(" ".join(words[at : at + 100]) + "." for at in range(0, len(words), 100)))
        command = ["nice", "-n", "19", sys.executable, "-m", "lodestream", "refresh", "--set", "encoder.num_threads=1"]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise SystemExit(done.stderr)
        published.append(time.monotonic())


def measure_publishing(folder: Path, ids: Sequence[str], *, seconds: int = 24) -> None:
    """p99 of reads of one id: idle, while snapshots are published, while a refresh encodes as well."""
    wanted = make_requests(ids)["get one id"]
    for form in FORMS:
        with start_server(form, serve(form, folder), folder) as own:
            run_load(own.url, wanted, seconds=2, connections=2)
            idle: list[Load] = []
            for what in ("idle", "publishing", "encoding"):
                stop, published = threading.Event(), list[float]()
                options = {"encode": what == "encoding", "published": published}
                thread = threading.Thread(target=publish_forever, args=(folder, stop), kwargs=options)
                if what != "idle":
                    thread.start()
                loads = [run_load(own.url, wanted, seconds=seconds // 4, connections=2) for _ in range(4)]
                stop.set()
                if what != "idle":
                    thread.join()
                idle = idle or loads
                config: dict[str, Any] = {"form": form, "connections": 2, "published": len(published)}
                config["requests"] = sum(load.requests for load in loads)
                config["failed"] = sum(load.failed for load in loads)
                for quantile in ("p50_ms", "p99_ms"):
                    values = [getattr(load, quantile) for load in loads]
                    record(NAME, "lodestream", f"get one id, {what}, {quantile[:3]}", "ms", values, form, config)
                record(NAME, "lodestream", f"get one id, {what}, failed", "requests", [config["failed"]], form, config)
                if what != "idle":
                    ratios = [load.p99_ms / other.p99_ms for load, other in zip(loads, idle, strict=True)]
                    record(NAME, "lodestream", f"get one id, {what}, p99 / idle", "x", ratios, form, config)


def measure_memory(folder: Path, ids: Sequence[str], *, minutes: float = 10) -> None:
    """Resident memory of the server under mixed load, every few seconds, and a picture of it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mixed = [request for kind in make_requests(ids).values() for request in kind[:200]]
    random.Random(7).shuffle(mixed)
    with start_server("uvicorn", serve("uvicorn", folder), folder) as own:
        samples: list[tuple[float, float]] = []
        num_requests = failed = 0
        begun = time.monotonic()
        while (at := time.monotonic() - begun) < minutes * 60:
            load = run_load(own.url, mixed, seconds=5, connections=4)
            num_requests, failed = num_requests + load.requests, failed + load.failed
            pages = int(Path(f"/proc/{own.process.pid}/statm").read_text(encoding="ascii").split()[1])
            samples.append((at / 60, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
        assert httpx2.get(f"{own.url}/readyz").status_code == 200
    late = [mib for at, mib in samples if at >= minutes / 2]
    early = [mib for at, mib in samples if minutes / 10 <= at < minutes / 2]
    config = {
        "minutes": minutes,
        "mib": [round(mib) for _, mib in samples[::6]],
        "requests": num_requests,
        "failed": failed,
    }
    record(NAME, "lodestream", "resident memory, first half", "MiB", early, config=config)
    record(NAME, "lodestream", "resident memory, second half", "MiB", late, config=config)
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.plot([at for at, _ in samples], [mib for _, mib in samples], linewidth=1.2)
    axes.set(xlabel="minutes of load", ylabel="resident memory, MiB", ylim=(0, 1.2 * max(late)))
    axes.set_title(
        f"lodestream serve: {num_requests:,} requests (reads, searches, new texts), {failed} failed", fontsize=9
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(Path(__file__).resolve().parents[2] / "docs" / "serve_memory.png", dpi=110)


def main(parts: Sequence[str]) -> None:
    known = {
        "reads": measure_reads,
        "processor": measure_processor,
        "publishing": measure_publishing,
        "memory": measure_memory,
    }
    chosen = [part for part in parts if "/" not in part]
    if set(chosen) - set(known):
        raise SystemExit(f"parts are {', '.join(known)}")
    if not chosen:
        start(NAME)
    with tempfile.TemporaryDirectory(prefix="bs", dir="/tmp") as name:
        folder = next((Path(part) for part in parts if "/" in part), Path(name))
        folder.mkdir(parents=True, exist_ok=True)
        ids = build_store(folder)
        for part in chosen or known:
            known[part](folder, ids)


if __name__ == "__main__":
    main(sys.argv[1:])
