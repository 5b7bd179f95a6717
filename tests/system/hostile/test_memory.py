"""What requests leave in a worker's memory, however they end: nothing that only the garbage collector finds.

The app has turned that off. It runs it when it is asked to, which says how many objects were in cycles; one
per request would be seen for certain.
"""

import json
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import PATIENCE, Daemon, Place, until

pytestmark = pytest.mark.system

N = 100
"""Requests of each kind."""
SPARE = N // 2
"""Objects in cycles that may be there anyway."""
APP = """
import gc, json, os, sys
gc.disable()

def answer(path):
    if path == "/boom":
        raise ValueError("boom")
    if path == "/late":
        return late()
    if path == "/large":
        return b"x" * 500_000
    if path == "/collect":
        sockets = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                sockets += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            except OSError:
                pass
        found = gc.collect()
        return json.dumps({"found": found, "sockets": sockets}).encode()
    return b"ok"

def late():
    yield b"x"
    raise ValueError("late")

def app(environ, start_response):
    environ["wsgi.input"].read()
    body = answer(environ["PATH_INFO"])
    if environ["PATH_INFO"] == "/late":
        start_response("200 OK", [])
        return again(body, start_response)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

def again(body, start_response):
    try:
        yield from body
    except ValueError:
        start_response("500 Too Late", [], sys.exc_info())

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("only http")
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    body = answer(scope["path"])
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
"""
WORDS: dict[str, tuple[str, ...]] = {
    "sync": ("leaky:app",),
    "threads": ("--threads", "4", "leaky:app"),
    "gevent": ("-k", "gevent", "leaky:app"),
    "asgi": ("-k", "asgi", "leaky:asgi"),
}
LIMITS = "-w 1 --keep-alive 0.5 --header-timeout 0.5 --body-timeout 0.5 --limit-request-body 1000".split()
HOST = b" HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /" + HOST
CLOSE = b"Connection: close\r\n\r\n"
POST = b"POST /" + HOST
UPGRADE = (
    b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

# What a client sends; the server ends the connection.
ENDED: dict[str, bytes] = {
    "served": GET + CLOSE,
    "idle": GET + b"\r\n",
    "pipelined": (GET + b"\r\n") * 5 + GET + CLOSE,
    "HEAD": b"HEAD /" + HOST + CLOSE,
    "chunked": POST + b"Transfer-Encoding: chunked\r\n" + CLOSE + b"3\r\nabc\r\n0\r\n\r\n",
    "an error in the app": b"GET /boom" + HOST + CLOSE,
    "a large answer": b"GET /large" + HOST + CLOSE,
    "upgrade": GET + UPGRADE,
    "400": b"what is this?\r\n\r\n",
    "400 field": GET + b"a b: c\r\n\r\n",
    "400 chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx",
    "501": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "505": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a late head": b"GET / HT",
}
REFUSED_BY_US: dict[str, bytes] = {
    "413": POST + b"Content-Length: 1001\r\n\r\n",
    "413 chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nx",
    "414": b"GET /" + b"x" * 9000 + HOST + b"\r\n",
    "417": GET + b"Expect: everything\r\n\r\n",
    "431": GET + b"X: " + b"x" * 60_000 + b"\r\n\r\n",
    "431 fields": GET + b"a: b\r\n" * 200 + b"\r\n",
    "an error behind the head": b"GET /late" + HOST + CLOSE,
}
RESET: dict[str, bytes] = {
    "reset": b"",
    "reset in a head": b"GET / HT",
    "reset in a body": POST + b"Content-Length: 100\r\n\r\nabc",
    "reset behind a request": b"GET /large" + HOST + b"\r\n",
}


def connect(daemon: Daemon) -> socket.socket:
    sock = socket.create_connection(daemon.address, timeout=PATIENCE)
    # Its close is a reset: no port waits for its end.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def drained(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass


def send_all(daemon: Daemon, data: bytes, reset: bool) -> None:
    """N connections, all at once: some kinds end only when a time is over."""
    socks = [connect(daemon) for _ in range(N)]
    for sock in socks:
        if data:
            sock.sendall(data)
    for sock in socks:
        if not reset:
            drained(sock)
        sock.close()


def collect(daemon: Daemon, tls: ssl.SSLContext | None = None) -> dict[str, int]:
    with connect(daemon) as plain:
        sock = tls.wrap_socket(plain, server_hostname="localhost") if tls is not None else plain
        with sock:
            sock.sendall(b"GET /collect" + HOST + CLOSE)
            data = b"".join(iter(lambda: sock.recv(4096), b""))
    found: dict[str, int] = json.loads(data.partition(b"\r\n\r\n")[2])
    return found


def leaks(
    daemon: Daemon, kinds: dict[str, Callable[[], None]], tls: ssl.SSLContext | None = None
) -> dict[str, int]:
    """The kinds of which objects were left, and how many."""
    for _ in range(3):
        before = collect(daemon, tls)
    found = {}
    for name, play in kinds.items():
        play()
        left = 0

        def closed() -> bool:
            nonlocal left
            now = collect(daemon, tls)
            left += now["found"]
            return now["sockets"] <= before["sockets"]

        until(closed, f"all sockets are closed: {name}")
        if left > SPARE:
            found[name] = left
    return found


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_nothing_is_left(place: Place, words: tuple[str, ...]) -> None:
    """Served, refused, reset, too late, failed: no objects in cycles, and no socket stays open."""
    place.add("leaky.py", APP)
    daemon = place.start(*LIMITS, *words)
    ended = ENDED if "asgi" in words else ENDED | REFUSED_BY_US
    kinds: dict[str, Callable[[], None]] = {}
    for name, data in ended.items():
        kinds[name] = lambda data=data: send_all(daemon, data, reset=False)  # type: ignore[misc]
    for name, data in RESET.items():
        kinds[name] = lambda data=data: send_all(daemon, data, reset=True)  # type: ignore[misc]
    assert leaks(daemon, kinds) == {}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_nothing_is_left_under_tls(place: Place, words: tuple[str, ...], tmp_path: Path) -> None:
    """The same for handshakes that fail, and for what is no TLS."""
    authority = Authority(tmp_path)
    server = authority.issue("localhost")
    context = authority.client_context()
    place.add("leaky.py", APP)
    daemon = place.start(*LIMITS, "--certfile", server.cert, "--keyfile", server.key, *words)

    def ask() -> None:
        for _ in range(N):
            with connect(daemon) as plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
                sock.sendall(GET + CLOSE)
                drained(sock)

    kinds: dict[str, Callable[[], None]] = {
        "served": ask,
        "plain HTTP": lambda: send_all(daemon, GET + CLOSE, reset=False),
        "no TLS": lambda: send_all(daemon, b"\x16\x03\x01" + b"garbage" * 50, reset=False),
        "reset": lambda: send_all(daemon, b"", reset=True),
        "a late handshake": lambda: send_all(daemon, b"\x16\x03\x01", reset=False),
    }
    assert leaks(daemon, kinds, context) == {}


@pytest.mark.parametrize("words", [WORDS["sync"], WORDS["gevent"]], ids=["sync", "gevent"])
def test_nothing_is_left_of_proxy_headers(place: Place, words: tuple[str, ...]) -> None:
    """The same for PROXY headers that are none, or do not end."""
    place.add("leaky.py", APP)
    daemon = place.start(*LIMITS, "--proxy-protocol", "auto", *words)
    kinds: dict[str, Callable[[], None]] = {
        "malformed": lambda: send_all(daemon, b"PROXY TCP4 nonsense\r\n", reset=False),
        "cut": lambda: send_all(daemon, b"PROXY TC", reset=True),
        "late": lambda: send_all(daemon, b"PROXY TC", reset=False),
    }
    assert leaks(daemon, kinds) == {}
