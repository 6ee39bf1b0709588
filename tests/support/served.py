"""A service over a small real store, for the tests of the endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions
from lodestream.pipeline.serve.batched_encoding import BatchedEncoding
from lodestream.pipeline.serve.limits import Limits
from lodestream.pipeline.serve.parts import Encoding
from lodestream.pipeline.serve.scan_searcher import ScanSearcher
from lodestream.pipeline.serve.service import Service
from lodestream.pipeline.serve.stored_rows import StoredRows
from lodestream.storage.location import Location
from tests.support.workspace import Workspace

POLL_S = 0.05

DOCUMENTS = {
    "wool.md": "# Wool\n\nSheep are shorn in spring. Their wool is spun into yarn.\n\nYarn is knitted into jumpers.\n",
    "rockets.md": "# Rockets\n\nA rocket burns fuel and oxidiser. Its thrust lifts it against gravity.\n",
    "bread.md": "# Bread\n\nFlour, water, salt and yeast make a dough. It rises for an hour, and is baked.\n",
}


@contextmanager
def serve(
    workspace: Workspace, *, make_encoding: Callable[[FeaturizerOptions], Encoding] | None = None, **limits: Any
) -> Iterator[Service]:
    """A started service over the workspace's store; ``limits`` are those of Limits."""
    chosen = Limits(**limits)

    def make_default(options: FeaturizerOptions) -> Encoding:
        return BatchedEncoding(Featurizer(options), chosen, num_threads=2)

    service = Service(
        Location.parse(str(workspace.store)),
        rows=StoredRows(),
        searcher=ScanSearcher(),
        make_encoding=make_encoding or make_default,
        limits=chosen,
        poll_interval_s=POLL_S,
    )
    service.start()
    try:
        yield service
    finally:
        service.close()
