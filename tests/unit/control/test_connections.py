"""Limits for untrusted clients of a control server, with real sockets."""

import asyncio
import errno
import os
import pwd
import socket
from pathlib import Path

import pytest

from ostler.control import allowances, connections
from ostler.control.acceptor import ControlAcceptor
from ostler.logs.limiter import LimitedLog
from tests.unit.control.conftest import Rig
from tests.unit.control.fake import captured_log

NOBODY = pwd.getpwnam("nobody").pw_uid


async def exchange(rig: Rig, sent: bytes) -> bytes:
    """Everything that the server sends until it closes; a reset also ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    received = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(10):
            while data := await reader.read(65536):
                received += data
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    return received


def request(rig: Rig, line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", f"Host: 127.0.0.1:{rig.port}", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        ("POST /v1/login", ["Content-Encoding: gzip", "Content-Length: 100"], 415),
        ("POST /v1/nothing", ["Content-Encoding: br", "Content-Length: 100"], 415),
        ("POST /v1/login", ["Content-Length: 100000000"], 413),
        ("POST /v1/login", ["Transfer-Encoding: chunked"], 411),
        ("POST /v1/scale", ["Content-Length: 100"], 401),
        ("POST /v1/nothing", ["Content-Length: 100"], 404),
        ("PUT /v1/status", ["Content-Length: 100"], 405),
    ],
)
async def test_a_refusal_reads_no_body(rig: Rig, line: str, headers: list[str], status: int) -> None:
    """The answer is sent at once, before any byte of the body arrives, and then the connection is closed."""
    answer = await exchange(rig, request(rig, line, *headers))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer


async def test_a_refused_client_that_goes_on_sending_reads_the_answer(rig: Rig) -> None:
    """Further bytes are discarded for a while, because after a reset the client could lose the answer."""
    body = b"x" * 100_000
    sent = request(rig, "POST /v1/login", f"Content-Length: {len(body)}") + body
    assert (await exchange(rig, sent)).startswith(b"HTTP/1.1 413 ")


async def test_no_client_sends_without_end(rig: Rig) -> None:
    """The connection is closed after some hundred KB."""
    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(request(rig, "POST /v1/login", "Content-Length: 100000000"))
    sent = 0
    try:
        async with asyncio.timeout(10):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536
    except ConnectionError:
        pass
    # The kernel's buffers on loopback take some MB by themselves.
    assert sent < 50_000_000
    writer.close()


async def test_100_continue_comes_when_the_body_is_wanted(rig: Rig) -> None:
    """It is not sent before authentication (RFC 9110, section 10.1.1)."""
    expect = ["Expect: 100-continue", "Content-Type: application/json", "Content-Length: 2"]
    refused = await exchange(rig, request(rig, "POST /v1/scale", *expect))
    assert refused.startswith(b"HTTP/1.1 401 ")
    reader, writer = await asyncio.open_unix_connection(rig.path)
    writer.write(request(rig, "POST /v1/stop", *expect))
    assert await asyncio.wait_for(reader.readline(), 10) == b"HTTP/1.1 100 Continue\r\n"
    writer.write(b"{}")
    assert await asyncio.wait_for(reader.readline(), 10) == b"\r\n"
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 202 ")
    writer.close()


async def test_a_slow_head_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that come one by one do not keep a connection open; nor does silence."""
    monkeypatch.setattr("ostler.control.connection.HEAD_SECONDS", 0.2)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: "):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(sent)

        async def drip(writer: asyncio.StreamWriter = writer) -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip()) if sent else None
        async with asyncio.timeout(10):
            try:
                assert await reader.read(-1) == b""
            except ConnectionResetError:
                pass
        if dripping is not None:
            dripping.cancel()
        writer.close()


async def test_a_slow_body_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive in time is a 408, and the connection is closed."""
    monkeypatch.setattr("ostler.control.app.BODY_SECONDS", 0.2)
    headers = ["Content-Type: application/json", "Content-Length: 100"]
    answer = await exchange(rig, request(rig, "POST /v1/login", *headers) + b'{"co')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"slow_body" in answer


@pytest.mark.parametrize(
    "head", ["\r\n".join(f"x{number}: {'y' * 8000}" for number in range(40)), f"Cookie: {'c' * 1_100_000}"]
)
async def test_a_large_head_is_refused(rig: Rig, head: str) -> None:
    """It is not kept in memory while its client sends more."""
    answer = await exchange(rig, request(rig, "GET /", head))
    assert answer[9:12] in (b"431", b"400"), answer[:80]


async def test_a_target_of_many_slashes_is_refused(rig: Rig) -> None:
    """The router's work would grow with the square of their number."""
    assert b" 400 " in (await exchange(rig, request(rig, f"GET {'/' * 7000}")))[:16]


async def test_pipelined_requests_are_answered_in_turn(rig: Rig) -> None:
    """All are answered, although only a limited number is parsed in advance."""
    sent = request(rig, "GET /healthz") * 99 + request(rig, "GET /healthz", "Connection: close")
    assert (await exchange(rig, sent)).count(b"HTTP/1.1 200 OK") == 100


async def test_pipelined_requests_wait_in_the_kernel(rig: Rig) -> None:
    """The memory for a connection does not grow with time, for any client."""
    served = rig.server._runners[0]._connections
    reader, writer = await asyncio.open_unix_connection(rig.path)

    async def pipeline() -> None:
        while True:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost:a\r\n\r\n" * 1000)
            await writer.drain()

    pipelining = asyncio.create_task(pipeline())
    most_requests = most_bytes = received = 0
    async with asyncio.timeout(30):
        while received < 500_000:
            received += len(await reader.read(65536))
            for connection in served._open:
                most_requests = max(most_requests, len(connection._messages))
                most_bytes = max(most_bytes, len(connection._received))
    pipelining.cancel()
    writer.close()
    assert most_requests < 200
    assert most_bytes <= 256 * 1024  # as much as asyncio reads at a time


@pytest.mark.parametrize("requests", [1, 3])
async def test_a_client_that_ends_its_side_is_answered(rig: Rig, requests: int) -> None:
    """As with `nc -N`: requests before the end are answered, then the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(request(rig, "GET /healthz") * requests)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(-1), 10)
    assert received.count(b"HTTP/1.1 200 OK") == requests
    writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user for a moment")
async def test_an_untrusted_user_beyond_its_budget_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short connections, as a proxy makes them, wait for a short time and are not refused."""
    monkeypatch.setattr(allowances, "OTHER_USER", (0.02, 0.02))
    # With so small a budget one request that costs more than others, on a busy machine, means a longer wait.
    monkeypatch.setattr(connections, "LONGEST_WAIT", 10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(20):
        for _ in range(40):
            os.seteuid(NOBODY)
            try:
                sock = socket.socket()
            finally:
                os.seteuid(0)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", rig.port))
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(request(rig, "GET /healthz", "Connection: close"))
            assert (await reader.read(-1)).startswith(b"HTTP/1.1 200 ")
            writer.close()
    assert loop.time() - began > 0.5  # it had to wait


async def test_slow_bodies_make_room(rig: Rig) -> None:
    """At the limit of connections one with an incomplete body is closed; the next is served at once."""
    served = rig.server._runners[0]._connections
    slow = []
    for _ in range(served._limits.total):
        slow.append(await asyncio.open_unix_connection(rig.path))
        slow[-1][1].write(b"POST /v1/scale HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n")
    async with asyncio.timeout(10):
        while not all(one._reading_body for one in served._open):  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.01)
    async with rig.unix.get("/v1/status") as answer:
        assert answer.status == 200
    for _, writer in slow:
        writer.close()


async def test_idle_connections_make_room(rig: Rig) -> None:
    """However many are opened, the newest is served, and nothing is logged."""
    idle = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(300)]
    async with rig.tcp.get("/v1/status", headers=rig.bearer) as answer:
        assert answer.status == 200
    for reader, writer in idle[:100]:
        try:
            assert await asyncio.wait_for(reader.read(-1), 10) == b""
        except ConnectionResetError:
            pass
        writer.close()
    for _, writer in idle[100:]:
        writer.close()
    assert rig.records == []


async def test_refusals_are_logged_at_a_bounded_rate(rig: Rig) -> None:
    """The first ones of a peer are logged; changes that are carried out always are."""
    for _ in range(40):
        await rig.unix.post("/v1/workers/9/recycle")
        await rig.unix.post("/v1/scale", json={"delta": 0})
    outcomes = [record["outcome"] for record in rig.changes()]
    assert outcomes.count("200") == 40
    assert outcomes.count("404 not_found") == 10


async def test_out_of_descriptors_is_one_line(tmp_path: Path) -> None:
    """accept(2) fails for a while: it is tried again after a second, and logged once."""
    log, records = captured_log()
    tries = asyncio.Event()

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            tries.set()
            raise OSError(errno.EMFILE, "Too many open files")

    with Exhausted(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a.sock"))
        acceptor = ControlAcceptor(listener, lambda sock: sock.close(), LimitedLog(log, lambda: 0.0))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "a.sock"))
            await asyncio.wait_for(tries.wait(), 10)
            await asyncio.sleep(0)
        acceptor.close()
        acceptor.close()
    assert [record["event"] for record in records] == ["control_unavailable"]
