"""What all processes of one chaos run know, and what they write down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lodestream.storage.location import Location

COUNTER = "counter"
Events = list[dict[str, Any]]
SHARED = tuple(f"shared-{number}" for number in range(6))


@dataclass(frozen=True, kw_only=True)
class ChaosSetup:
    """One run.

    ``location``    the store, and the server in which its writers agree
    ``log``         file that all processes append to
    ``is_fenced``   False takes the fence away, in the processes of the run alone
    ``ttl_s``       of the lease
    ``think_s``     the longest pause between reading the counter and writing it
    ``retained_s``  how long versions that no snapshot has are kept: an hour in the product, here as long as no stop
    """

    location: Location
    log: Path
    is_fenced: bool = True
    ttl_s: float = 1.0
    think_s: float = 0.1
    retained_s: float = 6.0


class EventLog:
    """Appends events to the log, each in one write, so that a kill leaves whole lines."""

    def __init__(self, path: Path, **fields: Any) -> None:
        self._fields = fields
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        """Writes one event down, with the time."""
        line = json.dumps({"event": event, "at": time.monotonic(), **self._fields, **fields})
        os.write(self._descriptor, line.encode() + b"\n")


def read_events(path: Path) -> Events:
    """All events so far, in the order in which they were written down."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def name_tally(slot: int) -> str:
    """The document in which a worker counts its own increments."""
    return f"worker-{slot}"


def find_faults(contents: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is wrong with the content of a snapshot: the counter is the sum of what the workers count, in each one."""
    if not contents:
        return
    tallies = {name: int(texts[0]) for name, texts in contents.items() if name.startswith("worker-")}
    counter = int(contents[COUNTER][0])
    if counter != sum(tallies.values()):
        yield f"the counter is {counter}, the workers counted {tallies}"
    for name in SHARED:
        texts = contents.get(name, [])
        if len({text.partition(":")[0] for text in texts}) > 1:
            yield f"{name} is of several writes: {texts}"
