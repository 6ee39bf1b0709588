"""The routes that tell how store and server are: probes, status, snapshots, metrics, and the page."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from lodestream.errors import ServiceUnavailable
from lodestream.pipeline.serve.board import Board
from lodestream.pipeline.serve.metrics import Metrics
from lodestream.pipeline.serve.models import JSON, Readiness, SnapshotDescription, SnapshotsAnswer
from lodestream.pipeline.serve.page import render_page
from lodestream.pipeline.serve.rendering import to_json
from lodestream.pipeline.serve.routes import REFUSALS
from lodestream.pipeline.serve.service import Service

_RETRY_AFTER_S: Final = "5"
_NOT_READY: Final[dict[int | str, dict[str, Any]]] = {503: {"model": Readiness, "description": "Not ready, and why."}}
_PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_FRESH: Final = {"cache-control": "no-store"}


def make_probe_router(service: Service, board: Board, metrics: Metrics) -> APIRouter:
    """The routes over ``board``."""
    router = APIRouter()
    _add_probes(router, board)
    _add_status(router, service, board)

    @router.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST, headers=_FRESH)

    @router.get("/", include_in_schema=False)
    async def show_page() -> Response:
        """The status page."""
        content = await asyncio.to_thread(render_page, board)
        headers = _FRESH | {"content-security-policy": _PAGE_POLICY}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    return router


def _add_probes(router: APIRouter, board: Board) -> None:
    @router.get("/livez", response_class=Response)
    async def live() -> Response:
        """The process answers."""
        return Response(b"ok\n", media_type="text/plain", headers=_FRESH)

    @router.get("/readyz", response_model=Readiness, responses=_NOT_READY)
    async def ready() -> Response:
        """200 once the snapshot is open and the model warm, also where something is degraded; else 503."""
        readiness = board.judge_readiness()
        headers = _FRESH if readiness.is_ready else _FRESH | {"retry-after": _RETRY_AFTER_S}
        status_code = 200 if readiness.is_ready else 503
        content = to_json(readiness.model_dump())
        return Response(content, status_code=status_code, media_type=JSON, headers=headers)


def _add_status(router: APIRouter, service: Service, board: Board) -> None:
    @router.get("/v1/status", response_model=dict[str, Any], responses={401: REFUSALS[401]})
    async def status() -> Response:
        """What `lodestream status --json` prints, and how the server is."""
        values = await asyncio.to_thread(board.read_status)
        return Response(to_json(values), media_type=JSON, headers=_FRESH)

    @router.get("/v1/snapshots", response_model=SnapshotsAnswer, responses={401: REFUSALS[401], 503: REFUSALS[503]})
    async def snapshots() -> Response:
        """The snapshots that can be asked for by number, newest first."""
        pointer, view = service.follower.pointer, service.follower.latest
        if pointer is None or view is None:
            raise ServiceUnavailable("nothing is published yet", "lodestream run")
        answer = SnapshotsAnswer(
            snapshots=[
                SnapshotDescription(
                    sequence=record.sequence,
                    published_at=record.published_at,
                    run_id=record.run_id,
                    feature_version=record.feature_version,
                    latest=record.sequence == view.record.sequence,
                )
                for record in reversed(pointer.history)
            ]
        )
        return Response(to_json(answer.model_dump()), media_type=JSON, headers=_FRESH)
