"""Requests leave nothing in a worker's memory, in whatever way they end.

The app has turned the garbage collector off, and counts what Python has allocated (tracemalloc), which gives
the same numbers on every machine. This finds objects that are kept, and reference cycles. Paths and
fields differ in each request, so that caches keyed by them are found as well; the two caches of request
texts, whose sizes have bounds, are emptied before memory is measured.

contrib/bench/memory.py does the same with 100,000 requests, and reads resident memory.
"""

import contextlib
import itertools
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.processes import descriptors
from tests.kit.tiers import tiers
from tests.kit.waiting import PATIENCE, until

pytestmark = [pytest.mark.system, pytest.mark.thorough]

N = 100
"""Connections of each kind in a round."""
SPARE = 40
"""Bytes per connection by which memory may grow: less than the smallest object that is kept."""
ROUNDS = 15
"""What is made once fills memory in the first rounds; what is kept, in all."""
OPEN = 30
"""Connections that are kept open."""
TLS_MOST = 100 * 1024
"""Bytes that one of them may take, beside what OpenSSL takes: a buffer for reading, most of all."""
SETTLE = 0.5
"""Seconds until what a connection needs is gone behind its end, timers included."""
APP = """
import asyncio, gc, json, os, sys, time, tracemalloc
gc.disable()
tracemalloc.start()

from ostler.http1 import head

def answer(path):
    if path.startswith("/boom"):
        raise ValueError(path)
    if path.startswith("/late"):
        return late()
    if path.startswith("/large"):
        return b"x" * 500_000
    if path == "/measure":
        sockets = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                sockets += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            except OSError:
                pass
        head._hosts.clear()
        # Python keeps some freed objects for later use. A collection gives them up; frozen, cycles stay.
        gc.freeze()
        gc.collect()
        gc.unfreeze()
        memory = tracemalloc.get_traced_memory()[0]
        return json.dumps({"memory": memory, "sockets": sockets}).encode()
    return b"ok"

def late():
    yield b"x"
    raise ValueError("late")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    environ["wsgi.input"].read()
    while path.startswith("/sleep"):
        time.sleep(0.01)
    body = answer(path)
    if path.startswith("/late"):
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
    if scope["path"].startswith("/sleep"):
        await asyncio.sleep(1000)
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
    "eventlet": ("-k", "eventlet", "leaky:app"),
    "asgi": ("-k", "asgi", "leaky:asgi"),
}
LIMITS = "-w 1 --keep-alive 0.5 --header-timeout 0.5 --body-timeout 0.5 --limit-request-body 1000".split()
# The connection's number stands for @.
HOST = b"/@?@ HTTP/1.1\r\nHost: x@\r\nCookie: @\r\nX-Id: @\r\n"
GET = b"GET /ok" + HOST
CLOSE = b"Connection: close\r\n\r\n"
POST = b"POST /ok" + HOST
MEASURE = b"GET /measure HTTP/1.1\r\nHost: x\r\n" + CLOSE
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
    "400": b"what is @?\r\n\r\n",
    "400 field": GET + b"a b: @\r\n\r\n",
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
    "reset behind pipelined requests": (b"GET /large" + HOST + b"\r\n") * 20,
}


def connect(daemon: Daemon) -> socket.socket:
    sock = socket.create_connection(daemon.address, timeout=PATIENCE)
    # Closing sends a reset, so that no port stays in TIME_WAIT.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def drained(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass


def numbered(data: bytes) -> Iterator[bytes]:
    """The requests of N connections. The numbers have the same length, so that they take the same memory."""
    for _ in range(N):
        yield data.replace(b"@", str(next(_numbers)).encode())


_numbers = itertools.count(1_000_000)


def send_all(daemon: Daemon, data: bytes, reset: bool, count: int = N) -> None:
    """Many connections at the same time, because some kinds end only after a time-out."""
    socks = []
    for part in itertools.islice(numbered(data), count):
        sock = connect(daemon)
        socks.append(sock)
        if part:
            sock.sendall(part)
    for sock in socks:
        if not reset:
            drained(sock)
        sock.close()


class Memory(NamedTuple):
    """memory: bytes that Python has allocated; sockets: how many are open."""

    memory: int
    sockets: int


def measure(daemon: Daemon, tls: ssl.SSLContext | None = None) -> Memory:
    # The daemon's time-outs of half a second can end this connection, too, on a machine that stalls.
    return until(lambda: _measured(daemon, tls), "an answer with the memory")


def _measured(daemon: Daemon, tls: ssl.SSLContext | None) -> Memory | None:
    """None if the connection was ended, or refused."""
    try:
        with connect(daemon) as plain:
            sock = tls.wrap_socket(plain, server_hostname="localhost") if tls is not None else plain
            with sock:
                sock.sendall(MEASURE)
                data = b"".join(iter(lambda: sock.recv(4096), b""))
    except (ConnectionError, ssl.SSLError):
        return None
    return Memory(**json.loads(data.partition(b"\r\n\r\n")[2])) if b" 200 OK\r\n" in data else None


def leaks(
    daemon: Daemon,
    kinds: dict[str, Callable[[], None]],
    tls: ssl.SSLContext | None = None,
    allowed: int = SPARE * N,
) -> dict[str, list[int]]:
    """The kinds that left something in memory, and how many bytes in each round."""
    for _ in range(3):
        sockets = measure(daemon, tls).sockets
    return {
        name: grown
        for name, play in kinds.items()
        if (grown := growth(daemon, name, play, sockets, tls, allowed))
    }


def growth(
    daemon: Daemon,
    name: str,
    play: Callable[[], None],
    sockets: int,
    tls: ssl.SSLContext | None,
    allowed: int,
) -> list[int]:
    """By how many bytes memory has grown in each round; empty if it has not grown in one of them."""
    found = []
    before = measure(daemon, tls).memory
    for _ in range(ROUNDS):
        play()
        after = settled(daemon, name, tls, sockets, before + allowed)
        if after <= before + allowed:
            return []
        found.append(after - before)
        before = after
    return found


def settled(daemon: Daemon, name: str, tls: ssl.SSLContext | None, sockets: int, memory: int) -> int:
    """The allocated bytes after all connections have ended:
    waits until they are at most `memory`, or returns what they stay at.
    """
    end = time.monotonic() + SETTLE

    def look() -> Memory | None:
        now = measure(daemon, tls)
        return now if now.sockets <= sockets and (now.memory <= memory or time.monotonic() > end) else None

    return until(look, f"all sockets are closed: {name}").memory


@pytest.mark.parametrize("words", tiers(WORDS.items(), ["threads"]))
def test_nothing_is_left(place: Place, words: tuple[str, ...]) -> None:
    """Served, refused, reset, too slow, failed: memory does not grow, and no socket stays open."""
    place.add("leaky.py", APP)
    daemon = place.start(*LIMITS, "--access-logfile", str(place.folder / "access.log"), *words)
    ended = ENDED if "asgi" in words else ENDED | REFUSED_BY_US
    kinds: dict[str, Callable[[], None]] = {}
    for name, data in ended.items():
        kinds[name] = lambda data=data: send_all(daemon, data, reset=False)  # type: ignore[misc]
    for name, data in RESET.items():
        kinds[name] = lambda data=data: send_all(daemon, data, reset=True)  # type: ignore[misc]
    assert leaks(daemon, kinds) == {}


@pytest.mark.thorough
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_nothing_is_left_of_overdue_requests(place: Place, words: tuple[str, ...]) -> None:
    """The same for requests that are ended at their deadline;
    only a few, since a sync worker has one at a time.
    """
    place.add("leaky.py", APP)
    daemon = place.start("-w", "1", "-t", "0.2", "--timeout-grace", "60", *words)
    count = 5 if words == WORDS["sync"] else 20

    def play() -> None:
        send_all(daemon, b"GET /sleep" + HOST + CLOSE, reset=False, count=count)

    assert leaks(daemon, {"overdue": play}, allowed=200 * count) == {}


def test_hundreds_are_overdue_at_once(place: Place) -> None:
    """Ending one costs an asgi worker little time, so that its loop is not blocked until it is killed."""
    place.add("leaky.py", APP)
    daemon = place.start("-w", "1", "-t", "0.2", "--timeout-grace", "60", *WORDS["asgi"])
    before = daemon.pids()
    socks = [connect(daemon) for _ in range(150)]
    for sock in socks:
        sock.sendall(b"GET /sleep/1 HTTP/1.1\r\nHost: x\r\n" + CLOSE)
    answers = [sock.recv(12, socket.MSG_WAITALL)[9:12] for sock in socks]
    for sock in socks:
        sock.close()
    assert set(answers) == {b"504"}
    assert daemon.pids() == before


@pytest.mark.thorough
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_nothing_is_left_under_tls(place: Place, words: tuple[str, ...], tmp_path: Path) -> None:
    """The same for handshakes that fail, and for bytes that are not TLS."""
    authority = Authority(tmp_path)
    server = authority.issue("localhost")
    context = authority.client_context()
    place.add("leaky.py", APP)
    daemon = place.start(*LIMITS, "--certfile", server.cert, "--keyfile", server.key, *words)

    def ask(data: bytes, reset: bool = False) -> None:
        asked = 0
        for part in numbered(data):
            # The daemon's time-outs of half a second can end a handshake on a machine that stalls.
            with (
                contextlib.suppress(ssl.SSLError, ConnectionError),
                connect(daemon) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as sock,
            ):
                sock.sendall(part)
                asked += 1
                if not reset:
                    drained(sock)
        assert asked > N // 2

    kinds: dict[str, Callable[[], None]] = {
        "served": lambda: ask(GET + CLOSE),
        "an error in the app": lambda: ask(b"GET /boom" + HOST + CLOSE),
        "a large answer": lambda: ask(b"GET /large" + HOST + CLOSE),
        "400": lambda: ask(b"what is @?\r\n\r\n"),
        "reset in a head": lambda: ask(b"GET /@", reset=True),
        "reset in a body": lambda: ask(POST + b"Content-Length: 100\r\n\r\nabc", reset=True),
        "reset behind a request": lambda: ask(b"GET /large" + HOST + b"\r\n", reset=True),
        "plain HTTP": lambda: send_all(daemon, GET + CLOSE, reset=False),
        "no TLS": lambda: send_all(daemon, b"\x16\x03\x01" + b"garbage" * 50, reset=False),
        "reset": lambda: send_all(daemon, b"", reset=True),
        "a late handshake": lambda: send_all(daemon, b"\x16\x03\x01", reset=False),
    }
    assert leaks(daemon, kinds, context) == {}


@pytest.mark.parametrize("words", tiers(WORDS.items(), ["asgi"]))
def test_connections_take_little_under_tls(place: Place, words: tuple[str, ...], tmp_path: Path) -> None:
    """Clients that keep connections open can't fill the memory with their buffers (asyncio's default buffers
    are larger).
    """
    authority = Authority(tmp_path)
    server = authority.issue("localhost")
    context = authority.client_context()
    place.add("leaky.py", APP)
    daemon = place.start("-w", "1", "--certfile", server.cert, "--keyfile", server.key, *words)
    with contextlib.ExitStack() as stack:

        def connect_all() -> None:
            for part in itertools.islice(numbered(GET + b"\r\n"), OPEN):
                plain = stack.enter_context(connect(daemon))
                sock = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                sock.sendall(part)
                assert sock.recv(4096)

        connect_all()  # so that objects that are made once are not counted
        before = measure(daemon, context).memory
        connect_all()
        assert measure(daemon, context).memory - before < TLS_MOST * OPEN


@pytest.mark.thorough
@pytest.mark.parametrize("words", [WORDS["sync"], WORDS["gevent"]], ids=["sync", "gevent"])
def test_nothing_is_left_of_proxy_headers(place: Place, words: tuple[str, ...]) -> None:
    """The same for PROXY headers that are malformed or endless."""
    place.add("leaky.py", APP)
    daemon = place.start(*LIMITS, "--proxy-protocol", "auto", *words)
    kinds: dict[str, Callable[[], None]] = {
        "malformed": lambda: send_all(daemon, b"PROXY TCP4 nonsense @\r\n", reset=False),
        "cut": lambda: send_all(daemon, b"PROXY TC", reset=True),
        "late": lambda: send_all(daemon, b"PROXY TC", reset=False),
    }
    assert leaks(daemon, kinds) == {}


# -- the supervisor ------------------------------------------------------------------------------------------

REFUSED_BY_CONTROL: dict[str, bytes] = {
    "404": b"GET /v1/@ HTTP/1.1\r\nHost: localhost\r\nX-@: @\r\n" + CLOSE,
    "413": b"POST /v1/scale HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100000\r\n" + CLOSE,
    "400": b"what is @?\r\n\r\n",
    "closed early": b"GET /v1/status?@ HTTP/1.1\r\nHost: localhost\r\nX-@",
    "closed in a body": b"POST /v1/scale HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n{",
}
REFUSED = 300
"""Of each kind in a round."""
KEPT = 300
"""Bytes per request by which the supervisor's resident memory may grow. It is given out in pages."""


def resident(pid: int) -> int:
    """Bytes of resident memory without pages of files (proc_pid_status(5), RssAnon)."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_refused_control_requests_leave_nothing(place: Place) -> None:
    """Requests that the control API refuses, or that do not end, do not fill the supervisor's memory."""
    place.add("leaky.py", APP)
    daemon = place.start("-w", "1", *WORDS["sync"])
    daemon.settled(1)
    before = descriptors(daemon.pid)

    def play() -> None:
        for name, data in REFUSED_BY_CONTROL.items():
            for _ in range(REFUSED):
                with socket.socket(socket.AF_UNIX) as sock:
                    # It waits for room in the listen queue, without a time-out.
                    sock.connect(str(daemon.socket))
                    sock.settimeout(PATIENCE)
                    sock.sendall(data.replace(b"@", str(next(_numbers)).encode()))
                    if "closed" not in name:
                        assert sock.recv(12, socket.MSG_WAITALL)[9:12] == name.encode()

    allowed = KEPT * REFUSED * len(REFUSED_BY_CONTROL)
    play()
    grown = []
    for _ in range(3):
        memory = resident(daemon.pid)
        play()
        grown.append(resident(daemon.pid) - memory)
        if grown[-1] <= allowed:
            break
    assert min(grown) <= allowed, grown
    until(lambda: len(descriptors(daemon.pid)) <= len(before), "all descriptors are closed")


def test_ended_workers_leave_no_descriptors_or_threads(place: Place) -> None:
    """The supervisor has as many descriptors and threads after many workers as it had before."""
    place.add("leaky.py", APP)
    daemon = place.start("-w", "2", "--max-requests", "1", *WORDS["sync"])

    def used() -> tuple[int, int]:
        daemon.settled(2)
        return len(descriptors(daemon.pid)), len(list(Path(f"/proc/{daemon.pid}/task").iterdir()))

    def replace(count: int) -> None:
        end = len(daemon.events("worker_ready")) + count
        while len(daemon.events("worker_ready")) < end:
            with contextlib.suppress(OSError):  # the request may reach a worker that ends
                daemon.get()

    replace(4)
    most = used()
    replace(20)
    # Threads of a pool and connections of clients end a moment later.
    until(
        lambda: all(now <= then + 1 for now, then in zip(used(), most, strict=True)), f"no more than {most}"
    )
