"""A Litestar app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gate import note, opened
from litestar import Litestar, MediaType, Request, WebSocket, get, post
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import websocket
from litestar.response import Stream


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    app.state.word = "started"
    yield
    note("stopped")


@get(["/", "/hello/{name:str}"], media_type=MediaType.TEXT)
async def hello(name: str = "world") -> str:
    return f"hello {name}"


@get("/state", media_type=MediaType.TEXT)
async def state(request: Request) -> str:
    return str(request.app.state.word)


@post("/size", status_code=200)
async def size(request: Request) -> dict[str, int]:
    return {"size": len(await request.body())}


@get("/stream", media_type=MediaType.TEXT)
async def stream() -> Stream:
    async def parts() -> AsyncIterator[str]:
        yield "first "
        await opened("stream")
        yield "last"

    return Stream(parts())


@get("/nothing", status_code=204)
async def nothing() -> None:
    pass


@websocket("/socket")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(f"echo {await socket.receive_text()}")
    except WebSocketDisconnect:
        note("closed")


app = Litestar([hello, state, size, stream, nothing, echo], lifespan=[lifespan], openapi_config=None)
