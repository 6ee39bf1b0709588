"""The endpoint while a writer publishes every second: no failed request, each answer of exactly one snapshot."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from lodestream.pipeline import versions
from lodestream.storage.store import FeatureStore
from tests.support.served import DOCUMENTS, Served, serve_http, stage, wait_until
from tests.support.workspace import Workspace

DURATION_S = 12.0
WORKERS = 4
FOLLOWED = [f"followed/{number}.md" for number in range(8)]


def test_publishing_every_second_under_load(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    store = FeatureStore.open(str(workspace.store))
    stage(store, FOLLOWED, version="g0", then_publish=True)
    with serve_http(workspace.load("serve.poll_interval=100ms")) as served:
        stop = threading.Event()
        writer = threading.Thread(target=publish, args=(store, stop))
        writer.start()
        answers = asyncio.run(load(served, DURATION_S))
        stop.set()
        writer.join()
        last = store.pointer().sequence
        wait_until(lambda: served.service.follower.latest.record.sequence == last)  # type: ignore[union-attr]
        wait_until(lambda: len(served.service.follower._views) == 1)
    by_snapshot: dict[int, set[str]] = {}
    for snapshot, found in answers:
        by_snapshot.setdefault(snapshot, set()).update(found)
    assert all(len(found) == 1 for found in by_snapshot.values()), by_snapshot
    assert len(by_snapshot) >= 3, "too few snapshots were seen to tell anything"
    assert len({version for found in by_snapshot.values() for version in found}) == len(by_snapshot)


def publish(store: FeatureStore, stop: threading.Event) -> None:
    """A new version of all followed documents every second."""
    generation = 0
    while not stop.is_set():
        generation += 1
        stage(store, FOLLOWED, version=f"g{generation}", then_publish=True)
        stop.wait(1.0)


async def load(served: Served, duration_s: float) -> list[tuple[int, set[str]]]:
    """Asks until the time is over; every answer must be one. Returns the snapshot and the versions in each."""
    answers: list[tuple[int, set[str]]] = []
    ends = time.monotonic() + duration_s

    async def ask(client: httpx.AsyncClient, worker: int) -> None:
        body: dict[str, Any] = {"ids": FOLLOWED, "granularities": ["document"], "encoding": "int8"}
        while time.monotonic() < ends:
            answer = await client.post("/v1/features:get", json=body)
            assert answer.status_code == 200, answer.text
            values = answer.json()
            assert str(values["snapshot"]) == answer.headers["x-snapshot"]
            assert [result["status"] for result in values["results"]] == ["FOUND"] * len(FOLLOWED)
            answers.append((values["snapshot"], {result["source_version"] for result in values["results"]}))
            if worker == 0:
                found = await client.post("/v1/search", json={"query": "followed", "granularity": "document"})
                assert found.status_code == 200, found.text
                assert found.json()["hits"]

    async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        await asyncio.gather(*(ask(client, worker) for worker in range(WORKERS)))
    return answers


def test_a_promoted_version_is_served_with_its_own_model(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path, DOCUMENTS)
    workspace.run()
    other = "segment.max_tokens=64"
    with serve_http(workspace.load("serve.poll_interval=100ms")) as served:
        stop = threading.Event()
        statuses: list[tuple[int, str]] = []

        def search() -> None:
            while not stop.is_set():
                answer = served.client.post("/v1/search", json={"query": "sheep and wool"})
                statuses.append((answer.status_code, answer.text if answer.status_code != 200 else ""))

        asking = threading.Thread(target=search)
        asking.start()
        before = served.service.encoding
        versions.add(workspace.load(other), "other")
        versions.promote(workspace.load(other), "other")
        wanted = FeatureStore.open(str(workspace.store)).pointer().feature_version
        wait_until(lambda: served.service.follower.latest.record.feature_version == wanted)  # type: ignore[union-attr]
        answer = served.client.post("/v1/search", json={"query": "sheep and wool"})
        stop.set()
        asking.join()
        after = served.service.encoding
        assert served.service.follower.trouble is None
    assert {status for status, _ in statuses} == {200}, [text for _, text in statuses if text][:3]
    assert answer.json()["feature_version"] == wanted
    assert answer.json()["hits"][0]["doc_id"] == "wool.md"
    assert before is not None
    assert after is not None
    assert before.featurizer.feature_version != after.featurizer.feature_version == wanted
