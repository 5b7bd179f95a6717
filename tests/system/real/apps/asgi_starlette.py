"""A Starlette app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gate import note, opened
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"word": "started"}
    note("stopped")


async def hello(request: Request) -> Response:
    return PlainTextResponse(f"hello {request.path_params.get('name', 'world')}")


async def state(request: Request) -> Response:
    return PlainTextResponse(request.state.word)


async def size(request: Request) -> Response:
    return JSONResponse({"size": len(await request.body())})


async def stream(request: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        yield "first "
        await opened("stream")
        yield "last"

    return StreamingResponse(parts(), media_type="text/plain")


async def nothing(request: Request) -> Response:
    return Response(status_code=204)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(f"echo {text}")
    note("closed")


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", hello),
        Route("/hello/{name}", hello),
        Route("/state", state),
        Route("/size", size, methods=["POST"]),
        Route("/stream", stream),
        Route("/nothing", nothing),
        WebSocketRoute("/socket", echo),
    ],
)
