"""uvicorn's protocols, as the asgi worker changes them, in a loop with real sockets: bytes in, bytes out."""

import asyncio
import gc
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("uvicorn")

from httptools import HttpParserUpgrade

from ostler.settings.table import Settings
from ostler.workers.asgi import memory_bounds, unusual_requests, uvicorn_setup
from ostler.workers.asgi.request import AsgiRequest
from tests.kit.waiting import PATIENCE

# uvicorn's own use of websockets, in its oldest release that is supported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BOTH = pytest.mark.parametrize("http", ["httptools", "h11"])
CLOSE = b"Connection: close\r\n"
LARGE = bytes(range(256)) * 400


class Server:
    """An app behind a protocol. `seen`: scopes and bodies of its requests, and what else it was told."""

    def __init__(self, http: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.config = uvicorn_setup.make_config(self.app, Settings(), {"http": http})
        tolerant = unusual_requests.tolerant(self.config.http_protocol_class)
        self.protocol = memory_bounds.bounded(tolerant, lambda *_: None)
        self.state = uvicorn_setup.ServerState()
        self.seen: list[Any] = []
        self.go_on = asyncio.Event()
        self.answer: dict[str, Any] = {"status": 200, "headers": [(b"content-length", b"2")]}
        self.parts = [b"ok"]
        self.reads = True

    def make(self) -> Any:
        return self.protocol(config=self.config, server_state=self.state, app_state={})

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Reads the body; `/wait` waits until it may go on, and notes how that ends."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
            self.seen.append(("websocket", scope["path"]))
            return
        body = b""
        while self.reads:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        self.seen.append((scope["method"], scope["path"], body, headers))
        if scope["path"] == "/wait":
            await self.go_on.wait()
        elif scope["path"] == "/until-gone":
            self.seen.append((await receive())["type"])
            return
        # What shows and counts it does not matter here.
        request = AsgiRequest(Mock(closing=False, timeout=0), Mock(), scope["method"], 0, scope, send)
        await request.send({"type": "http.response.start", **self.answer})
        for number, part in enumerate(self.parts):
            more = number < len(self.parts) - 1
            await request.send({"type": "http.response.body", "body": part, "more_body": more})
            if scope["path"] == "/stream":
                while (kind := (await receive())["type"]) != "http.disconnect":
                    pass
                self.seen.append(kind)
                return

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():  # noqa: ASYNC110 - conditions are no events
            await asyncio.sleep(0.005)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Each piece is read by the server before the next one comes."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.005)

    async def all(self) -> bytes:
        """All until the server closes the connection."""
        return await self.reader.read()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of an answer with a length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = {
            line.partition(":")[0].lower(): line.partition(":")[2] for line in head.decode().split("\r\n")
        }
        return int(head[9:12]), await self.reader.readexactly(int(fields["content-length"]))


@asynccontextmanager
async def serving(http: str, unix: str | None = None) -> AsyncIterator[tuple[Server, Client]]:
    server = Server(http)
    async with asyncio.timeout(PATIENCE):
        if unix is None:
            listening = await server.loop.create_server(server.make, "127.0.0.1", 0)
            client = Client(*await asyncio.open_connection(*listening.sockets[0].getsockname()))
        else:
            listening = await server.loop.create_unix_server(server.make, unix)
            client = Client(*await asyncio.open_unix_connection(unix))
        try:
            yield server, client
        finally:
            client.writer.close()
            listening.close()
            for protocol in list(server.state.connections):
                protocol.transport.abort()
            for task in list(server.state.tasks):
                task.cancel()
            await asyncio.gather(*server.state.tasks, return_exceptions=True)
            await server.until(lambda: not server.state.connections)


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join((line, "Host: x", *fields, "", "")).encode()


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


# -- upgrades --------------------------------------------------------------------------------------------

UPGRADES = [
    (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    ),
    ("Connection: upgrade", "Upgrade: foo"),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"),
    ("Connection: upgrade", "Connection: keep-alive", "Upgrade: websocket"),
]


@BOTH
@pytest.mark.parametrize("fields", UPGRADES, ids=["h2c", "foo", "websocket", "two-fields"])
@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("cut", ["whole", "behind-the-head", "in-the-head", "packets"])
async def test_a_body_is_not_lost(http: str, fields: tuple[str, ...], coding: str, cut: str) -> None:
    """Of a request whose upgrade is not taken, in whatever packets it comes; what follows is a request."""
    if coding == "length":
        request = head("POST /a%20b?c=d HTTP/1.1", *fields, f"Content-Length: {len(LARGE)}") + LARGE
    else:
        request = head("POST /a%20b?c=d HTTP/1.1", *fields, "Transfer-Encoding: chunked") + chunked(
            LARGE, 9000
        )
    end = request.index(b"\r\n\r\n")
    at = {
        "whole": [],
        "behind-the-head": [end + 4],
        "in-the-head": [9, end + 3],
        "packets": [end, 3000, 70_000],
    }
    places = [0, *sorted(at[cut]), len(request)]
    pieces = [request[begin:stop] for begin, stop in itertools.pairwise(places)]
    async with serving(http) as (server, client):
        await client.send(*pieces)
        assert await client.answer() == (200, b"ok")
        await client.send(head("GET /next HTTP/1.1"))
        assert await client.answer() == (200, b"ok")
        (method, path, body, headers), second = server.seen
        assert (method, path, body == LARGE) == ("POST", "/a b", True)
        sent = [field.split(": ") for field in fields]
        assert headers[1:-1] == [(name.lower(), value) for name, value in sent], "also what was not taken"
        assert second[:3] == ("GET", "/next", b"")


async def test_nothing_is_left_for_the_garbage_collector() -> None:
    """What the parser raises is not kept, with the bytes that were parsed."""
    gc.collect()
    gc.disable()
    try:
        async with serving("httptools") as (_, client):
            await client.send(head("GET / HTTP/1.1", *UPGRADES[0]))
            assert await client.answer() == (200, b"ok")
        assert [each for each in gc.get_objects() if isinstance(each, HttpParserUpgrade)] == []
    finally:
        gc.enable()


@BOTH
async def test_an_upgrade_behind_another_request(http: str) -> None:
    """Pipelined requests, all of which want an upgrade: each is answered, in order."""
    upgrade = head("POST /wait HTTP/1.1", "Connection: upgrade", "Upgrade: h2c", "Content-Length: 3") + b"abc"
    socket_wanted = head("GET /ws HTTP/1.1", "Connection: upgrade", "Upgrade: websocket")
    async with serving(http) as (server, client):
        await client.send(upgrade + upgrade.replace(b"abc", b"def") + upgrade.replace(b"abc", b"ghi"))
        if http == "httptools":  # h11 does not look at what waits
            await client.send(socket_wanted)
        await server.until(lambda: server.seen)
        server.go_on.set()
        for _ in range(3):
            assert await client.answer() == (200, b"ok")
        if http == "httptools":
            assert await client.answer() == (200, b"ok")
        assert [seen[2] for seen in server.seen[:3]] == [b"abc", b"def", b"ghi"]


@BOTH
@pytest.mark.parametrize(
    "request_head",
    [
        head("GET / HTTP/1.0", *UPGRADES[2]),
        head("GET / HTTP/1.1", *UPGRADES[2], "Content-Length: 2", "X: y") + b"hi",
        head("GET / HTTP/1.1", *UPGRADES[2], "Transfer-Encoding: chunked") + chunked(b"hi", 2),
    ],
    ids=["HTTP/1.0", "length", "chunked"],
)
async def test_what_is_no_handshake_is_a_request(http: str, request_head: bytes) -> None:
    """A websocket begins with a GET of HTTP/1.1 without a body; all else is for the app as it is."""
    async with serving(http) as (server, client):
        await client.send(request_head)
        assert await client.answer() == (200, b"ok")
        assert server.seen[0][2] == (b"hi" if b"hi" in request_head else b"")


@BOTH
async def test_websockets_still_begin(http: str) -> None:
    """A handshake comes to the app as a websocket."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    async with serving(http) as (server, client):
        await client.send(head("GET /ws HTTP/1.1", *UPGRADES[2][:3], key, "Content-Length: 0"))
        await server.until(lambda: server.seen)
        assert server.seen == [("websocket", "/ws")]


@BOTH
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_websockets(http: str, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a library for them a handshake is a request like others, and the log names what is missing."""
    async with serving(http) as (server, client):
        server.config.ws_protocol_class = None
        own = Client(*await asyncio.open_connection(*client.writer.get_extra_info("peername")))
        await own.send(head(f"{method} / HTTP/1.1", *UPGRADES[2], "Content-Length: 2"), b"hi")
        assert await own.answer() == (200, b"ok")
        own.writer.close()
        assert server.seen[0][2] == b"hi"
    assert "No supported WebSocket library" in caplog.text


@BOTH
async def test_connect(http: str) -> None:
    """Nothing can be tunnelled: it is refused, or answered by the app, but it does not hang."""
    async with serving(http) as (_, client):
        await client.send(head("CONNECT x:80 HTTP/1.1", "Connection: close"))
        assert (await client.all()).startswith(b"HTTP/1.1 ")


# -- Expect ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_100_continue(http: str, version: str) -> None:
    """It is sent to a client of HTTP/1.1 that waits for it, and never to one of HTTP/1.0."""
    async with serving(http) as (_, client):
        await client.send(
            head(f"POST / HTTP/{version}", "Expect: 100-continue", "Content-Length: 2", "Connection: close"),
            b"hi",
        )
        received = await client.all()
        assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200") == (version == "1.1")
        assert received.count(b"HTTP/1.1 ") == (2 if version == "1.1" else 1)
        assert received.endswith(b"\r\n\r\nok")


# -- invalid requests ------------------------------------------------------------------------------------


@BOTH
async def test_an_answer_that_has_begun_stays_as_it_is(http: str, caplog: pytest.LogCaptureFixture) -> None:
    """If the rest of the request is invalid the connection ends, without a second answer within the first."""
    async with serving(http) as (server, client):
        server.answer = {"status": 200, "headers": [(b"content-length", b"1000")]}
        server.parts = [b"first", b""]
        server.reads = False
        await client.send(head("POST /stream HTTP/1.1", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n")
        await client.reader.readuntil(b"first")
        await client.send(b"nonsense\r\n")
        assert await client.all() == b""
    assert [record.message for record in caplog.records] == ["Invalid HTTP request received."]


# -- framing ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("length", [None, b"0", b"5", b"7"])
@pytest.mark.parametrize("parts", [[b""], [b"hello"], [b"he", b"llo"]])
@pytest.mark.parametrize(("method", "status"), [("GET", 204), ("GET", 304), ("HEAD", 200), ("HEAD", 304)])
async def test_answers_without_a_body(
    http: str, length: bytes | None, parts: list[bytes], method: str, status: int
) -> None:
    """Whatever the app sends: the connection is kept, and the next answer follows the head."""
    async with serving(http) as (server, client):
        headers = [] if length is None else [(b"Content-Length", length)]
        server.answer, server.parts = {"status": status, "headers": headers}, parts
        await client.send(head(f"{method} / HTTP/1.1"))
        first = await client.reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % status)
        if status == 204:
            assert b"content-length" not in first.lower()
            assert b"transfer-encoding" not in first.lower()
        elif length is not None:
            assert b"content-length: " + length in first.lower()
        server.answer, server.parts = {"status": 200, "headers": [(b"content-length", b"2")]}, [b"ok"]
        await client.send(head("GET / HTTP/1.1"))
        assert await client.answer() == (200, b"ok")


@BOTH
@pytest.mark.parametrize("coding", [[], [(b"Transfer-Encoding", b"chunked")]], ids=["none", "chunked"])
@pytest.mark.parametrize("parts", [[b"hello"], [b"he", b"", b"llo"]])
async def test_http_1_0_gets_no_chunks(http: str, coding: list[Any], parts: list[bytes]) -> None:
    """A body of unknown length ends with the connection."""
    async with serving(http) as (server, client):
        server.answer, server.parts = {"status": 200, "headers": coding}, parts
        await client.send(head("GET / HTTP/1.0"))
        first, _, body = (await client.all()).partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200")
        assert b"transfer-encoding" not in first.lower()
        assert body == b"hello"


# -- half-closed connections -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("count", [1, 2, 4])
async def test_a_half_closed_client_is_answered(http: str, count: int) -> None:
    """All of its requests; then the connection ends."""
    async with serving(http) as (server, client):
        await client.send(b"".join(head(f"GET /wait?{number} HTTP/1.1") for number in range(count)))
        client.writer.write_eof()
        await server.until(lambda: any(each.half_closed for each in server.state.connections))
        (sock,) = (each.transport.get_extra_info("socket") for each in server.state.connections)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), "it will be found gone one day"
        server.go_on.set()
        received = await client.all()
        assert received.count(b"HTTP/1.1 200 OK") == count
        assert received.endswith(b"\r\n\r\nok")
        assert [seen[1] for seen in server.seen] == ["/wait"] * count


@BOTH
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", head("POST / HTTP/1.1", "Content-Length: 5") + b"abc"],
    ids=["", "head", "body"],
)
async def test_what_will_never_be_complete_is_given_up(http: str, sent: bytes) -> None:
    """A connection whose client has closed its side within a request, or between two, is closed."""
    async with serving(http) as (server, client):
        await client.send(sent)
        client.writer.write_eof()
        assert await client.all() == b""
        assert server.seen in ([], [("POST", "/", b"abc", server.seen[0][3] if server.seen else [])])


@BOTH
async def test_a_client_that_has_left(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has closed both sides, which only its reset tells: the app is notified."""
    monkeypatch.setattr(unusual_requests, "_ASK_AFTER", 0.0)
    async with serving(http) as (server, client):
        await client.send(head("GET /until-gone HTTP/1.1"))
        await server.until(lambda: server.seen)
        client.writer.close()
        await server.until(lambda: any(each.half_closed for each in server.state.connections))

        def notified() -> bool:
            for protocol in list(server.state.connections):
                protocol.look_for_client()
            return server.seen[-1] == "http.disconnect"

        await server.until(notified)


@BOTH
async def test_a_client_that_waits_long_is_asked_once(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interim answer, which it skips; then it gets its answer."""
    monkeypatch.setattr(unusual_requests, "_ASK_AFTER", 0.0)
    async with serving(http) as (server, client):
        await client.send(head("GET /wait HTTP/1.1"))
        client.writer.write_eof()
        await server.until(lambda: any(each.half_closed for each in server.state.connections))
        for _ in range(3):
            await asyncio.sleep(0.002)
            for protocol in list(server.state.connections):
                protocol.look_for_client()
        server.go_on.set()
        received = await client.all()
        assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert received.count(b"100 Continue") == 1
        assert received.endswith(b"ok")


@BOTH
async def test_a_local_client_that_has_left(http: str, tmp_path: Any) -> None:
    """By a Unix socket it is known at once which sides are closed."""
    async with serving(http, str(tmp_path / "s")) as (server, client):
        await client.send(head("GET /until-gone HTTP/1.1"))
        await server.until(lambda: server.seen)
        client.writer.close()
        await server.until(lambda: server.seen[-1] == "http.disconnect")


@BOTH
async def test_an_event_stream_ends_with_the_clients_side(http: str) -> None:
    """Nothing may be sent there for hours, so that its client is taken for gone."""
    async with serving(http) as (server, client):
        server.answer = {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        server.parts = [b"data: 1\n\n", b""]
        await client.send(head("GET /stream HTTP/1.1"))
        await client.reader.readuntil(b"data: 1\n\n")
        client.writer.write_eof()
        await server.until(lambda: server.seen[-1] == "http.disconnect")
