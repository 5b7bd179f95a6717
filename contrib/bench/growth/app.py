"""The app, and the command lines of the worker classes that serve it."""

APP = """\
import gc
gc.disable()
import asyncio, sys, time

LARGE = b"x" * 500_000

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/sleep"):
        while True:
            time.sleep(0.01)
    environ["wsgi.input"].read()
    if path.startswith("/error"):
        raise ValueError(path)
    if path.startswith("/missing"):
        body, status = b"not here\\n", "404 Not Found"
    else:
        body, status = (LARGE if path.startswith("/large") else b"ok\\n"), "200 OK"
    start_response(status, [("Content-Length", str(len(body))), ("X-Path", path)])
    return [body]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    path = scope["path"]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close" if path.startswith("/refused") else "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": path})
        return
    if path.startswith("/sleep"):
        await asyncio.sleep(1000)
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if path.startswith("/error"):
        raise ValueError(path)
    if path.startswith("/missing"):
        body, status = b"not here\\n", 404
    else:
        body, status = (LARGE if path.startswith("/large") else b"ok\\n"), 200
    headers = [(b"content-length", str(len(body)).encode()), (b"x-path", path.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

CLASSES: dict[str, tuple[str, ...]] = {
    "sync": ("grown:app",),
    "threads": ("--threads", "4", "grown:app"),
    "gevent": ("-k", "gevent", "grown:app"),
    "eventlet": ("-k", "eventlet", "grown:app"),
    "asgi": ("-k", "asgi", "grown:asgi"),
    "sync tls": ("grown:app",),
    "gevent tls": ("-k", "gevent", "grown:app"),
    "eventlet tls": ("-k", "eventlet", "grown:app"),
    "asgi tls": ("-k", "asgi", "grown:asgi"),
}
