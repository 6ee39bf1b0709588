"""A small real store, and the endpoint over it: as a service, and over HTTP on a free port of 127.0.0.1."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow as pa
import uvicorn
from fastapi import FastAPI

from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.serve.access import Access, open_access
from lodestream.pipeline.serve.app import build_app
from lodestream.pipeline.serve.opening import open_service
from lodestream.pipeline.serve.server import listen
from lodestream.pipeline.serve.service import Service
from lodestream.storage.store import FeatureStore
from tests.support.store_rows import make_documents, make_features, take_lease
from tests.support.workspace import Workspace

POLL = "serve.poll_interval=50ms"
WAIT_S = 60

DOCUMENTS = {
    "wool.md": "# Wool\n\nSheep are shorn in spring. Their wool is spun into yarn.\n\nYarn is knitted into jumpers.\n",
    "rockets.md": "# Rockets\n\nA rocket burns fuel and oxidiser. Its thrust lifts it against gravity.\n",
    "bread.md": "# Bread\n\nFlour, water, salt and yeast make a dough. It rises for an hour, and is baked.\n",
}
BROKEN = b"\xff\xff broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An endpoint that listens; ``client`` is addressed to it."""

    service: Service
    app: FastAPI
    client: httpx.Client
    url: str


@contextmanager
def serve(workspace: Workspace, *settings: str) -> Iterator[Service]:
    """A started service over the workspace's store."""
    service = open_service(workspace.load(POLL, *settings))
    service.start()
    try:
        yield service
    finally:
        service.close()


@contextmanager
def serve_http(
    loaded: LoadedConfig, *, access: Access | None = None, change: Callable[[Service], None] = lambda _: None
) -> Iterator[Served]:
    """The endpoint over HTTP.

    Args:
        loaded: the configuration.
        access: other than the configured one.
        change: is given the service before it starts.
    """
    service = open_service(loaded)
    change(service)
    app = build_app(service, loaded, access or open_access(loaded))
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    with listener, httpx.Client(base_url=url, timeout=WAIT_S) as client:
        try:
            wait_until(lambda: service.follower.has_looked)
            yield Served(service=service, app=app, client=client, url=url)
        finally:
            server.should_exit = True
            thread.join()


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits for something that other threads bring about."""
    ends = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def stage(store: FeatureStore, doc_ids: Sequence[str], *, version: str, then_publish: bool) -> None:
    """Writes documents whose ``source_version`` is ``version``, of the feature version that is published."""
    pointer = store.pointer()
    lease = take_lease(store)
    transaction = store.begin(
        lease=lease, run_id=version, kind="refresh", feature_version=pointer.feature_version, recipe=pointer.recipe
    )
    contents = {doc_id: [f"{doc_id} as of {version}"] for doc_id in doc_ids}
    documents = make_documents(contents, run_id=version)
    column = documents.schema.get_field_index("source_version")
    versions: Any = pa.array([version] * documents.num_rows, pa.string())
    documents = documents.set_column(column, documents.schema.field(column), versions)
    features = make_features(contents, run_id=version, dim=pointer.dim)
    transaction.write_chunk(features=features, documents=documents, deleted_doc_ids=())
    if then_publish:
        transaction.publish(checkpoint=pointer.checkpoint, run=pointer.run)
    lease.release()
