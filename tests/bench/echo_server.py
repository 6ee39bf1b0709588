"""A bare FastAPI application that answers with the body it is sent: what any answer costs. With --ray under Ray Serve,
with the settings that ``lodestream serve --ray`` has."""

import signal
import sys
import threading

from fastapi import FastAPI, Request, Response

from lodestream.pipeline.serve.server import listen


def make_app() -> FastAPI:
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    return app


def run_alone() -> None:
    """One process of uvicorn."""
    import uvicorn

    with listen("127.0.0.1", 0) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(make_app(), log_config=None, access_log=False)).run(sockets=[listener])


def run_on_ray() -> None:
    """One replica of Ray Serve."""
    from lodestream.pipeline.serve import ray_server

    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with ray_server.open_ray(""):
        from ray import serve

        class Echo:
            def __serve_build_asgi_app__(self) -> FastAPI:
                return make_app()

        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        deployment = serve.deployment(serve.ingress()(Echo), max_ongoing_requests=64)
        serve.run(deployment.bind(), name="echo", route_prefix="/")
        print(f"http://127.0.0.1:{port}", flush=True)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        while not stop.wait(1):
            pass
        serve.shutdown()


if __name__ == "__main__":
    run_on_ray() if "--ray" in sys.argv else run_alone()
