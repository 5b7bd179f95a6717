"""An ASGI app that imports only the standard library. Slow requests wait for a file, not for time."""

import asyncio
import json
import os
import time
from pathlib import Path

VERSION = "one"
started = []


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await live(scope, receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    else:
        await answer(scope, receive, send)


async def live(scope, receive, send):
    await receive()
    scope["state"]["pid"] = os.getpid()
    started.append(os.getpid())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    Path(f"shutdown-{os.getpid()}").touch()
    await send({"type": "lifespan.shutdown.complete"})


async def echo(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})
    Path(f"closed-{message['code']}").touch()


async def answer(scope, receive, send):
    path = scope["path"].removeprefix(scope["root_path"])
    headers = [(b"content-type", b"text/plain"), (b"x-worker", str(os.getpid()).encode())]
    if path.startswith("/stream/"):
        await stream(path.removeprefix("/stream/"), receive, send)
        return
    if path == "/fail":
        raise RuntimeError("the app's own mistake")
    if path == "/begins-and-waits":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await wait_at_gate("never")
    if path.startswith("/gate/"):
        body = await wait_at_gate(path.removeprefix("/gate/"))
    elif path == "/until-gone":
        while (await receive())["type"] != "http.disconnect":
            pass
        Path("gone").touch()
        return
    elif path == "/computes":
        body = await compute()
    elif path == "/computes-elsewhere":
        body = await asyncio.create_task(compute())
    elif path == "/extended":
        scope["ostler.extend_deadline"](20)
        body = await wait_at_gate("extended")
    elif path == "/pid":
        body = str(scope["state"].get("pid"))
    elif path == "/scope":
        body = json.dumps(
            {
                name: scope[name]
                for name in ("client", "server", "scheme", "root_path", "path", "http_version")
            }
        )
    elif path == "/body":
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        body = str(size)
    else:
        body = VERSION
    headers.append((b"content-length", str(len(body)).encode()))
    status = int(path[1:]) if path in ("/204", "/304") else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
    if path == "/then-works":
        await wait_at_gate("work")
        Path("worked").touch()


async def stream(gate, receive, send):
    kind = b"text/event-stream" if gate == "events" else b"text/plain"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": b"first ", "more_body": True})
    await wait_at_gate(gate)
    await send({"type": "http.response.body", "body": b"last"})


async def wait_at_gate(name):
    """Wait until the file NAME.open appears in the folder the daemon was started in."""
    while not Path(f"{name}.open").exists():
        await asyncio.sleep(0.01)
    return f"{name} passed"


async def compute():
    while True:
        time.sleep(0.01)


class OldStyle:
    """ASGI 2."""

    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        await answer(self.scope, receive, send)


def make():
    return app
