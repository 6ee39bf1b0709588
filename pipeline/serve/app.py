"""The HTTP application: one FastAPI app, whatever server it runs in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from lodestream import __version__
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.serve.access import Access
from lodestream.pipeline.serve.board import Board
from lodestream.pipeline.serve.gate import Gate
from lodestream.pipeline.serve.metrics import Metrics
from lodestream.pipeline.serve.models import Readiness
from lodestream.pipeline.serve.probes import make_probe_router
from lodestream.pipeline.serve.problems import add_problem_handlers
from lodestream.pipeline.serve.routes import make_data_router
from lodestream.pipeline.serve.service import Service

_LOOK_INTERVAL_S = 0.2
_DESCRIPTION = "Sentence, paragraph, topic and document features of a changing corpus, by id, of new text, by likeness."


def build_app(
    service: Service,
    loaded: LoadedConfig,
    access: Access,
    *,
    announce: Callable[[Readiness], None] = lambda _: None,
    ready_first: bool = False,
) -> FastAPI:
    """The application over ``service``, which it starts and closes with itself.

    Args:
        service: not started yet.
        loaded: for the status: which store, which target.
        access: who may ask.
        announce: called once it is known how ready the service is, and again once it is ready if it was not then.
        ready_first: the start of the server waits until the model is loaded, for one that gets requests at once.
    """
    metrics = Metrics(service)
    board = Board(loaded, service, metrics)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        # Beside the start of the server: it answers probes while the model is loading.
        starting = asyncio.create_task(asyncio.to_thread(service.start))
        if ready_first:
            await starting
        beside = [
            asyncio.create_task(board.sample_forever()),
            asyncio.create_task(_announce(starting, board, announce)),
        ]
        try:
            yield
        finally:
            service.is_stopping = True
            for task in beside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await starting
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="lodestream",
        summary=_DESCRIPTION,
        version=__version__,
        lifespan=live,
        docs_url=None,  # the interactive pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(make_data_router(service))
    app.include_router(make_probe_router(service, board, metrics))
    add_problem_handlers(app)
    app.add_middleware(Gate, access=access, limits=service.limits, metrics=metrics)
    return app


async def _announce(starting: asyncio.Task[None], board: Board, announce: Callable[[Readiness], None]) -> None:
    await asyncio.shield(starting)
    readiness = board.judge_readiness()
    announce(readiness)
    if readiness.is_ready:
        return
    while not (readiness := board.judge_readiness()).is_ready:
        await asyncio.sleep(_LOOK_INTERVAL_S)
    announce(readiness)
