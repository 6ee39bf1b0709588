"""Hit rate of the cache's policy beside LRU and LFU on the same uses: Zipf, Zipf with scans, shifting interest, and the
uses around streams of real edits (tests/support/cache_traces.py says how each is made; all have fixed seeds).

    LODESTREAM_STREAMS=FOLDER PYTHONPATH=. python tests/bench/bench_cache_policy.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from harness import record, start

from tests.support.cache_baselines import Lfu, Lru, Ours, hit_rate
from tests.support.cache_traces import Trace, edits_trace, scan_trace, shifting_trace, zipf_trace

NAME = "cache_policy"
SHARES = (0.02, 0.05, 0.1, 0.3)
READS_A_COMMIT = 100


def list_traces() -> dict[str, Callable[[], Trace]]:
    """The traces by name; those of real edits where their folder is given."""
    traces: dict[str, Callable[[], Trace]] = {
        "zipf": zipf_trace,
        "zipf + scan": scan_trace,
        "shifting": shifting_trace,
    }
    for path in sorted(Path(os.environ.get("LODESTREAM_STREAMS") or "/nowhere").glob("stream_*.parquet")):
        traces[f"edits {path.stem}"] = lambda path=path: edits_trace(path, reads_a_commit=READS_A_COMMIT)
    return traces


def main() -> None:
    """Records a line for each trace, budget and policy."""
    start(NAME)
    policies = {"lodestream": Ours, "LRU": Lru, "LFU": Lfu}
    for kind, make in list_traces().items():
        trace = make()
        footprint = sum(dict(trace).values())
        for share in SHARES:
            for provider, policy in policies.items():
                started = time.process_time()
                rate = hit_rate(policy, int(share * footprint), trace)
                each_us = (time.process_time() - started) / len(trace) * 1e6
                config = {"trace": kind, "uses": len(trace), "us_a_use": round(each_us, 1)}
                record(NAME, provider, f"hit_rate, {kind}", "1", [rate], x=share, config=config)


if __name__ == "__main__":
    main()
