"""A FastAPI app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse
from gate import note, opened


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.word = "started"
    yield
    note("stopped")


app = FastAPI(lifespan=lifespan)


@app.get("/", response_class=PlainTextResponse)
def hello() -> str:
    return "hello world"  # in a thread: it is no coroutine


@app.get("/hello/{name}", response_class=PlainTextResponse)
async def hello_you(name: str) -> str:
    return f"hello {name}"


@app.get("/state", response_class=PlainTextResponse)
async def state() -> str:
    return str(app.state.word)


@app.post("/size")
async def size(request: Request) -> dict[str, int]:
    return {"size": sum([len(part) async for part in request.stream()])}


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first "
        await opened("stream")
        yield "last"

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/nothing", status_code=204, response_class=Response)
async def nothing() -> None:
    pass


@app.websocket("/socket")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(f"echo {await websocket.receive_text()}")
    except WebSocketDisconnect:
        note("closed")
