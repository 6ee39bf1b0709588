"""The table of docs/chaos.md, from docs/bench/chaos.jsonl: ``python -m tests.fault.chaos.table``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.fault.chaos.__main__ import RESULTS_FILE

COLUMNS = {
    "kills": "num_kills",
    "stops": "num_stops",
    "restarts": "num_restarts",
    "increments published": "num_published",
    "reads": "num_reads",
    "lost": "num_lost",
    "twice": "num_duplicate",
    "epochs back": "num_backward",
    "faults": "num_faults",
}


def make_table(lines: Iterable[dict[str, Any]]) -> str:
    """Sums the runs of each back-end."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line in lines:
        total = totals[line["provider"]]
        total["minutes"] += round(line["config"]["duration_s"])
        for name in COLUMNS.values():
            total[name] += line[name]
        total["num_lost"] += max(0, line["num_published"] - line["counter"] - line["num_lost"])
    head = ["back-end", "minutes", *COLUMNS]
    rows = [
        [provider, f"{total['minutes'] / 60:.1f}", *(f"{total[name]:,}" for name in COLUMNS.values())]
        for provider, total in totals.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    print(make_table(json.loads(line) for line in RESULTS_FILE.read_text(encoding="utf-8").splitlines()))
