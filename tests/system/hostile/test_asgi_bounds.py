"""Limits of asgi workers for what they keep of clients:
uvicorn has no bounds for some of it, so the worker has.
"""

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import CLASSES, SLACK, client_time
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE

pytestmark = [pytest.mark.system, pytest.mark.thorough]

APP = """
import json
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("only http")
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while scope["path"] == "/large":
            await send({"type": "websocket.send", "bytes": bytes(100_000)})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": str(len(message["bytes"]))})
        return
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if scope["path"] == "/wait":
        await receive()
        return
    body = json.dumps([name.decode() for name, _ in scope["headers"]]).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
TRAILERS = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MOST = 24_000_000
"""Bytes by which a worker may grow; without bounds these clients take more."""


@pytest.fixture
def daemon(hostile_place: Place) -> Iterator[Daemon]:
    hostile_place.add("keeps.py", APP)
    limits = ("-w", "1", "--worker-connections", "12", "--keep-alive", "600", "--graceful-timeout", "1")
    daemon = hostile_place.start(*limits, "-k", "asgi", "keeps:asgi")
    yield daemon
    assert daemon.events("worker_died") == []
    assert daemon.events("internal_error") == []


def connect(daemon: Daemon, stack: ExitStack, path: bytes | None = None) -> socket.socket:
    """A connection; with `path`, one that was upgraded to a websocket."""
    sock = stack.enter_context(socket.socket())
    if path is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(daemon.address)
    if path is not None:
        sock.sendall(UPGRADE % path)
        assert sock.recv(12) == b"HTTP/1.1 101"
    return sock


def receive_until(sock: socket.socket, end: bytes) -> bytes:
    """Receive until `end` arrives: uvicorn sends head and body of an answer separately."""
    data = bytearray()
    while not data.endswith(end):
        part = sock.recv(1 << 16)
        assert part, data[-100:]
        data += part
    return bytes(data)


def frame(opcode: int, data: bytes = b"", last: bool = True) -> bytes:
    """A websocket frame from a client (RFC 6455 section 5.2), with at most 125 bytes."""
    return struct.pack("BB4x", opcode | last << 7, len(data) | 0x80) + data


def resident(daemon: Daemon) -> int:
    """Resident bytes of the worker (proc_pid_statm(5))."""
    return int(Path(f"/proc/{daemon.pids()[0]}/statm").read_text().split()[1]) * 4096


def flood(sock: socket.socket, first: bytes, more: bytes) -> bytes:
    """Send `first`, then `more` up to 500 times until the connection is closed;
    returns the beginning of the answer.
    """
    answer = b""
    try:
        sock.sendall(first)
        for _ in range(500):
            sock.sendall(more)
            if select.select([sock], [], [], 0.01)[0]:
                answer = answer or sock.recv(12)
    except ConnectionError:
        return answer
    raise AssertionError("it was not ended")


@pytest.mark.parametrize(
    ("first", "more", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 65536, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a:\r\n" * 16384, b"431"),
        (b"GET /", b"x" * 65536, b"431"),
        (b"", b"\r\n" * 32768, b"431"),
        (TRAILERS, b"a:\r\n" * 16384, b""),
        (TRAILERS + b"X: ", b"x" * 65536, b""),
    ],
    ids=["field", "fields", "target", "empty lines", "trailers", "trailer"],
)
def test_heads_without_end(daemon: Daemon, first: bytes, more: bytes, status: bytes) -> None:
    """An endless head or trailer section ends the connection."""
    with ExitStack() as stack:
        answer = flood(connect(daemon, stack), first, more)
    assert answer[9:] in (status, b"")  # a reset may have discarded it
    assert client_time(daemon) < SLACK


def test_a_thousand_fields(daemon: Daemon) -> None:
    """Small fields count as well."""
    with ExitStack() as stack:
        sock = connect(daemon, stack)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 1000 + b"\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 431 ")


def test_trailers_are_not_fields(daemon: Daemon) -> None:
    """A field that a proxy would have removed from the head does not reach the app as a trailer."""
    with ExitStack() as stack:
        sock = connect(daemon, stack)
        sock.sendall(TRAILERS + b"X-Forwarded-User: admin\r\n\r\n")
        answer = receive_until(sock, b"]")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"x-forwarded-user" not in answer
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert receive_until(sock, b"]").startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_wait_as_bytes(daemon: Daemon) -> None:
    """Requests behind one that is not answered yet take no more memory than their bytes."""
    before = resident(daemon)
    with ExitStack() as stack:
        for _ in range(10):
            sock = connect(daemon, stack)
            sock.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET / HTTP/1.1\r\n\r\n" * 12_000)
        daemon.until(lambda: len(daemon.workers()[0].in_flight) >= 8, "requests wait")
        assert client_time(daemon) < SLACK
        assert resident(daemon) - before < MOST


@pytest.mark.parametrize("size", [7, *thorough(1, 1000, 100_000)])
def test_pipelined_requests_are_all_answered(daemon: Daemon, size: int) -> None:
    """All are answered, in whatever pieces they arrive."""
    count = 200 if size > 1 else 10
    one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    other = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"
    data = (one + other) * (count // 2) + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        sock = connect(daemon, stack)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), size):
            sock.sendall(data[at : at + size])
        answers = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == count + 1


def test_pings_of_a_client_that_does_not_read(daemon: Daemon) -> None:
    """Answers to its pings do not accumulate; when it reads again, the connection continues."""
    with ExitStack() as stack:
        sock = connect(daemon, stack, b"/")
        pings = frame(9, b"x" * 125) * 1000
        sock.sendall(pings * 40)
        before = resident(daemon)
        sock.sendall(pings * 400)
        assert resident(daemon) - before < MOST
        sock.sendall(frame(2, b"hello"))
        receive_until(sock, b"\x81\x015")


def test_fragments_without_end(daemon: Daemon) -> None:
    """A message of many fragments is received completely."""
    with ExitStack() as stack:
        sock = connect(daemon, stack, b"/")
        sock.sendall(frame(2, b"a", last=False) + frame(0, b"b", last=False) * 5000 + frame(0, b"c"))
        receive_until(sock, b"\x81\x045002")


def test_websockets_that_do_not_read_make_room(daemon: Daemon) -> None:
    """A worker full of websockets whose clients read nothing closes them for new clients."""
    with ExitStack() as stack:
        for _ in range(18):
            connect(daemon, stack, b"/large")
        took = [client_time(daemon) for _ in range(5)]
    assert max(took) < SLACK, took
    daemon.event("connections_evicted")


def test_a_class_without_websockets_serves(hostile_place: Place) -> None:
    """The h11 protocol has bounds of its own, so a class with it serves as well."""
    hostile_place.add("h11_worker.py", "from ostler.workers.asgi.worker import AsgiWorker\n"
        "class Worker(AsgiWorker):\n    config_kwargs = {'http': 'h11', 'ws': 'none'}\n")  # fmt: skip
    daemon = hostile_place.start("-w", "1", "-k", "h11_worker.Worker", CLASSES["asgi"][-1])
    assert daemon.get().status == 200
