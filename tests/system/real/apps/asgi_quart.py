"""A Quart app."""

from collections.abc import AsyncIterator

from gate import note, opened
from quart import Quart, request, websocket

app = Quart(__name__)


@app.before_serving
async def start() -> None:
    app.config["WORD"] = "started"


@app.after_serving
async def stop() -> None:
    note("stopped")


@app.get("/")
@app.get("/hello/<name>")
async def hello(name: str = "world") -> str:
    return f"hello {name}"


@app.get("/state")
async def state() -> str:
    return str(app.config["WORD"])


@app.post("/size")
async def size() -> dict[str, int]:
    return {"size": len(await request.get_data())}


@app.get("/stream")
async def stream() -> tuple[AsyncIterator[str], dict[str, str]]:
    async def parts() -> AsyncIterator[str]:
        yield "first "
        await opened("stream")
        yield "last"

    return parts(), {"Content-Type": "text/plain"}


@app.get("/nothing")
async def nothing() -> tuple[str, int]:
    return "", 204


@app.websocket("/socket")
async def echo() -> None:
    try:
        while True:
            await websocket.send(f"echo {await websocket.receive()}")
    finally:
        note("closed")
