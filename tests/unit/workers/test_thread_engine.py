"""The epoll engine on real sockets, alone and with several threads.

The thread of the test is the client; the order of steps is ensured by events and by what was
received, never by time.
"""

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from ostler.wsgi.environ import Environ
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE, Client, Serve

Start = Callable[..., Any]

BOTH = pytest.mark.parametrize("threads", [1, 4])
LARGE = 24 * 1024 * 1024  # more than the kernel buffers between two sockets
POST = b"POST /post HTTP/1.1\r\nHost: x\r\n"


class Shop:
    """The app; the path selects what it does. It records the paths for which it was called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.threads: set[int] = set()

    def __call__(self, environ: Environ, start_response: Start) -> Any:
        path = environ["PATH_INFO"]
        self.called.append(path)
        self.threads.add(threading.get_ident())
        headers = [("Content-Type", "text/plain")]
        if path == "/error":
            raise ValueError("oops")
        if path == "/exit":
            raise SystemExit(1)
        if path == "/broken":
            return self._broken(start_response, headers)
        start_response("200 OK", headers)
        if path == "/large":
            return [b"x" * LARGE]
        if path == "/large-list":
            return [b"x" * (LARGE // 16)] * 16
        if path == "/parts":
            return (b"%d " % number for number in range(1000))
        if path == "/large-parts":
            return (b"x" * 65536 for _ in range(LARGE // 65536))
        if path == "/wait":
            self.entered.set()
            assert self.may_go.wait(PATIENCE)
        return [path.encode() + b" " + environ["wsgi.input"].read()]

    @staticmethod
    def _broken(start_response: Start, headers: list[tuple[str, str]]) -> Iterator[bytes]:
        start_response("200 OK", headers)
        yield b"begun"
        raise ValueError("oops")


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.may_go.set()


# -- everyday traffic ------------------------------------------------------------------------------------


@BOTH
def test_keep_alive(serve: Serve, shop: Shop, threads: int) -> None:
    """Many requests on one connection, each answered before the next is sent."""
    client = serve(shop, threads=threads).client()
    for number in range(50):
        answer = client.get(f"/{number}")
        assert (answer.status, answer.body) == ("200 OK", b"/%d " % number)
        assert "connection" not in answer.headers
        assert answer.headers["server"] == "ostler"
        assert answer.headers["date"].endswith(" GMT")


@BOTH
def test_pipelined_requests_are_answered_in_order(serve: Serve, shop: Shop, threads: int) -> None:
    """RFC 9112 section 9.3.2: a hundred requests at once, a hundred answers in their order."""
    client = serve(shop, threads=threads).client()
    numbers = range(100)
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in numbers))
    assert [client.answer().body for _ in numbers] == [b"/%d " % number for number in numbers]
    assert shop.called == [f"/{number}" for number in numbers]


@BOTH
def test_a_request_byte_by_byte(serve: Serve, shop: Shop, threads: int) -> None:
    """A head and a body in a hundred segments are one request."""
    client = serve(shop, threads=threads).client()
    for byte in POST + b"Content-Length: 5\r\n\r\nhello":
        client.send(bytes([byte]))
    assert client.answer().body == b"/post hello"


@BOTH
def test_close(serve: Serve, shop: Shop, threads: int) -> None:
    """A client that sends `Connection: close` gets its answer and a clean end; so does one of HTTP/1.0."""
    rig = serve(shop, threads=threads)
    for request in (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"):
        client = rig.client()
        client.send(request)
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"/ ", "close")
        assert client.rest() == b""


@BOTH
def test_half_closed_clients_get_their_answer(serve: Serve, shop: Shop, threads: int) -> None:
    """A client may shut down its sending side after the request, as `nc` does."""
    client = serve(shop, threads=threads).client()
    client.ask("/large")
    client.sock.shutdown(socket.SHUT_WR)
    assert len(client.answer().body) == LARGE
    assert client.rest() == b""


@BOTH
def test_a_generator_is_streamed(serve: Serve, shop: Shop, threads: int) -> None:
    """Chunks for HTTP/1.1 with the connection kept; until the end of the connection for HTTP/1.0."""
    rig = serve(shop, threads=threads)
    expected = b"".join(b"%d " % number for number in range(1000))
    client = rig.client()
    for _ in range(2):
        answer = client.get("/parts")
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.body == expected
    client = rig.client()
    client.send(b"GET /parts HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answer = client.answer()
    assert answer.headers["connection"] == "close"
    assert answer.body == expected


@BOTH
def test_head(serve: Serve, shop: Shop, threads: int) -> None:
    """No body, and the next answer on the connection begins at the right byte."""
    client = serve(shop, threads=threads).client()
    for target in ("/large", "/parts", "/a"):
        client.send(f"HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.answer("HEAD").status == "200 OK"
        assert client.get("/next").body == b"/next "


@BOTH
def test_a_large_body_arrives_whole(serve: Serve, shop: Shop, threads: int) -> None:
    """A body beyond the memory limit reaches the app as it was sent, and leaves no file open."""
    client = serve(shop, threads=threads).client()
    body = os.urandom(3_000_000)
    client.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert client.answer().body == b"/post " + body
    client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n")
    assert client.answer().body == b"/post hello"


@BOTH
def test_expect_continue(serve: Serve, shop: Shop, threads: int) -> None:
    """A client that waits gets `100 Continue` before it has sent a byte of its body."""
    client = serve(shop, threads=threads).client()
    client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert client.answer().status == "100 Continue"
    client.send(b"hello")
    assert client.answer().body == b"/post hello"


def test_expect_continue_behind_another_request(serve: Serve, shop: Shop) -> None:
    """Otherwise the client would wait for ever."""
    client = serve(shop).client()
    client.sock.settimeout(1.0)
    client.send(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
    client.send(
        b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
        + POST
        + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    assert client.answer().body == b"/first "
    assert client.answer().body == b"/second "
    assert client.answer().status == "100 Continue"


@BOTH
def test_apps_that_fail(serve: Serve, shop: Shop, threads: int) -> None:
    """An error is a 500 and a traceback in the log, and the engine continues; SystemExit is an error too."""
    rig = serve(shop, threads=threads)
    for target, word in (("/error", "ValueError: oops"), ("/exit", "SystemExit: 1")):
        client = rig.client()
        answer = client.get(f"{target}?token=secret")
        assert answer.status == "500 Internal Server Error"
        assert answer.headers["connection"] == "close"
        assert client.rest() == b""
        assert rig.client().get("/next").status == "200 OK"
        assert word in rig.log()
    assert '"path": "/error"' in rig.log()
    assert "secret" not in rig.log()


@BOTH
def test_an_answer_that_breaks_off(serve: Serve, shop: Shop, threads: int) -> None:
    """The client sees the end of the connection instead of the last chunk."""
    client = serve(shop, threads=threads).client()
    client.ask("/broken")
    rest = client.rest()
    assert rest.endswith(b"5\r\nbegun\r\n")


@BOTH
def test_wsgiref_finds_nothing(serve: Serve, threads: int) -> None:
    """A validated app behind the whole engine answers, and the engine continues."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    rig = serve(validator(app), threads=threads)
    client = rig.client()
    assert [client.get(f"/{number}").body for number in range(3)] == [b"/0", b"/1", b"/2"]
    assert "request_failed" not in rig.log()


def test_the_app_may_replace_its_input(serve: Serve) -> None:
    """wsgiref.validate and other middleware replace wsgi.input, which the engine must not close."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(5)]

    rig = serve(validator(app))
    for _ in range(2):
        client = rig.client()
        client.sock.settimeout(2.0)
        client.send(POST + b"Content-Length: 5\r\n\r\nhello")
        assert client.answer().body == b"hello"
    assert rig.failure is None


# -- several threads -------------------------------------------------------------------------------------


def test_threads_serve_at_the_same_time(serve: Serve) -> None:
    """Four requests are in the app at once; a barrier holds each until all have arrived."""
    barrier = threading.Barrier(4)

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        assert environ["wsgi.multithread"]
        barrier.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"together"]

    rig = serve(app, threads=4)
    clients = [rig.client() for _ in range(4)]
    for client in clients:
        client.ask()
    assert [client.answer().body for client in clients] == [b"together"] * 4


def test_a_stuck_thread_leaves_the_others(serve: Serve, shop: Shop) -> None:
    """While one request waits, others on existing and new connections are answered."""
    rig = serve(shop, threads=2)
    stuck, old = rig.client(), rig.client()
    assert old.get("/before").status == "200 OK"
    stuck.ask("/wait")
    assert shop.entered.wait(PATIENCE)
    for number in range(20):
        assert old.get(f"/{number}").body == b"/%d " % number
        assert rig.client().get("/new").body == b"/new "
    shop.may_go.set()
    assert stuck.answer().body == b"/wait "


def test_many_clients_and_threads(serve: Serve, shop: Shop) -> None:
    """Dozens of connections are opened, used and closed in parallel: each answer belongs to its request."""
    rig = serve(shop, threads=4)
    wrong: list[object] = []

    def visit(visitor: int) -> None:
        try:
            for round_ in range(5):
                client = Client(rig.address)
                try:
                    for number in range(10):
                        body = client.get(f"/{visitor}/{round_}/{number}").body
                        if body != b"/%d/%d/%d " % (visitor, round_, number):
                            wrong.append(body)
                finally:
                    client.close()
        except Exception as error:
            wrong.append(error)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for thread in visitors:
        thread.start()
    for thread in visitors:
        thread.join(PATIENCE)
    assert wrong == []
    assert len(shop.called) == 400


# -- slow clients ----------------------------------------------------------------------------------------


@BOTH
def test_slow_readers_cost_no_app_time(serve: Serve, shop: Shop, threads: int) -> None:
    """More clients than threads leave large answers unread; others are still served."""
    rig = serve(shop, threads=threads, keepalive=60)
    slow = [rig.client(receive_buffer=4096) for _ in range(threads + 1)]
    for client in slow:
        client.ask("/large")
    quick = rig.client()
    for number in range(20):
        assert quick.get(f"/{number}").body == b"/%d " % number
    for client in slow:
        assert len(client.answer().body) == LARGE
        assert client.get("/after").body == b"/after "


def test_slow_readers_of_lists_cost_no_app_time(serve: Serve, shop: Shop) -> None:
    """A list is completely in memory; the number of its parts must not matter."""
    rig = serve(shop)
    slow, quick = rig.client(receive_buffer=4096), rig.client()
    quick.sock.settimeout(1.0)
    slow.ask("/large-list")
    assert quick.get("/quick").body == b"/quick "


@BOTH
def test_a_long_stream_to_a_slow_reader_arrives_whole(serve: Serve, shop: Shop, threads: int) -> None:
    """Beyond a limit the app waits for the reader; nothing is lost and memory is bounded."""
    # Data that the kernel buffers for a slow client counts as sent, so the connection may look idle for long.
    client = serve(shop, threads=threads, keepalive=60).client(receive_buffer=4096)
    assert len(client.get("/large-parts").body) == LARGE
    assert client.get("/after").body == b"/after "


@BOTH
def test_a_stream_goes_on_when_its_reader_does(serve: Serve, threads: int) -> None:
    """Data that was buffered while the client did not read is sent with the next part, not at the end."""
    enough = threading.Event()

    def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield from [b"x" * 100_000] * 8
        while not enough.wait(0.02):
            yield b"tick"

    client = serve(app, threads=threads).client(receive_buffer=4096)
    client.ask("/")
    received = 0
    try:
        while received < 800_100:
            received += len(client.sock.recv(65536))
    finally:
        enough.set()


@BOTH
def test_pipelining_behind_a_large_answer(serve: Serve, shop: Shop, threads: int) -> None:
    """Requests after an answer that is not read yet are answered when it is, in order."""
    rig = serve(shop, threads=threads)
    client = rig.client(receive_buffer=4096)
    targets = ["/1", "/large", "/2", "/large", "/3"]
    client.send(b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode() for target in targets))
    assert rig.client().get("/other").body == b"/other "
    sizes = [len(client.answer().body) for _ in targets]
    assert sizes == [3, LARGE, 3, LARGE, 3]
    assert [path for path in shop.called if path != "/other"] == targets


@BOTH
def test_the_last_answer_reaches_a_slow_reader(serve: Serve, shop: Shop, threads: int) -> None:
    """`Connection: close` after a large answer does not cut off unsent data."""
    rig = serve(shop, threads=threads)
    client = rig.client(receive_buffer=4096)
    client.ask("/large", "Connection: close")
    assert rig.client().get("/other").status == "200 OK"
    assert len(client.answer().body) == LARGE
    assert client.rest() == b""


@BOTH
def test_a_slow_reader_may_go_away(serve: Serve, shop: Shop, threads: int) -> None:
    """A client that disconnects during its answer affects no other one, and is not an error of the app."""
    rig = serve(shop, threads=threads)
    for target in ("/large", "/large-parts"):
        client = rig.client(receive_buffer=4096)
        client.ask(target)
        assert client.sock.recv(100)
        client.close()
        assert rig.client().get("/other").status == "200 OK"
    assert rig.client().get("/other").status == "200 OK"
    assert "request_failed" not in rig.log()


@BOTH
def test_slow_writers_cost_no_app_time(serve: Serve, shop: Shop, threads: int) -> None:
    """Bodies that stop half-way occupy no thread; the app is called when they are complete."""
    rig = serve(shop, threads=threads)
    slow = [rig.client() for _ in range(threads + 1)]
    for client in slow:
        client.send(POST + b"Content-Length: 10\r\n\r\n01234")
    quick = rig.client()
    for number in range(20):
        assert quick.get(f"/{number}").body == b"/%d " % number
    assert "/post" not in shop.called
    for client in slow:
        client.send(b"56789")
        assert client.answer().body == b"/post 0123456789"


@BOTH
def test_a_slow_writer_may_go_away(serve: Serve, shop: Shop, threads: int) -> None:
    """Half a request does not count as a request."""
    rig = serve(shop, threads=threads)
    client = rig.client()
    client.send(POST + b"Content-Length: 10\r\n\r\n01234")
    client.close()
    assert rig.client().get("/other").status == "200 OK"
    assert shop.called == ["/other"]


# -- bad requests ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", "400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400 Bad Request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 500_000, "431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n", "431 Request Header Fields Too Large"),
    ],
)
def test_bad_requests(serve: Serve, shop: Shop, bad: bytes, status: str, threads: int) -> None:
    """The answer says what is wrong, then the connection ends cleanly, without a reset,
    although more data is sent.
    """
    client = serve(shop, threads=threads).client()
    client.send(bad)
    client.send(b"more of it " * 20_000)
    answer = client.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""
    assert shop.called == []


@BOTH
def test_a_bad_request_behind_a_good_one(serve: Serve, shop: Shop, threads: int) -> None:
    """The valid one is answered; the connection ends cleanly."""
    client = serve(shop, threads=threads).client()
    client.send(b"GET /good HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n" + b"more " * 20_000)
    assert client.answer().body == b"/good "
    client.rest()
    assert shop.called == ["/good"]


@BOTH
def test_a_bad_request_behind_good_ones(serve: Serve, shop: Shop, threads: int) -> None:
    """Every complete request before the bad one is answered, then the bad one is refused."""
    client = serve(shop, threads=threads).client()
    client.send(b"GET /good HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"nonsense\r\n\r\n")
    answers = client.rest()
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answers.count(b"HTTP/1.1 400 Bad Request\r\n") == 1


# -- the connection's life -------------------------------------------------------------------------------


@BOTH
def test_idle_connections_are_closed(serve: Serve, shop: Shop, threads: int) -> None:
    """An idle connection is closed after `keepalive`, not before, and cleanly."""
    client = serve(shop, threads=threads, keepalive=0.6).client()
    assert client.get("/").status == "200 OK"
    began = time.monotonic()
    assert client.rest() == b""
    assert 0.5 < time.monotonic() - began < PATIENCE


@BOTH
def test_no_keep_alive(serve: Serve, shop: Shop, threads: int) -> None:
    """With `keepalive` 0 every answer ends its connection, even if the client asks to keep it."""
    rig = serve(shop, threads=threads, keepalive=0)
    client = rig.client()
    client.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"/1 ", "close")
    assert client.rest() == b""
    assert shop.called == ["/1"]


@BOTH
def test_draining(serve: Serve, shop: Shop, threads: int) -> None:
    """Open connections get `Connection: close` with their next answer; new ones are left to siblings."""
    rig = serve(shop, threads=threads)
    idle = [rig.client() for _ in range(3)]
    for client in idle:
        assert "connection" not in client.get("/before").headers
    rig.drain()
    late = rig.client()  # the kernel accepts it; the engine must not
    late.ask("/late")
    for client in idle:
        answer = client.get("/after")
        assert (answer.body, answer.headers["connection"]) == (b"/after ", "close")
        assert client.rest() == b""
        client.close()
    assert rig.ended()
    assert "/late" not in shop.called
    sibling, _ = rig.listener.accept()
    sibling.settimeout(PATIENCE)
    assert sibling.recv(100).startswith(b"GET /late ")


@BOTH
def test_draining_finishes_what_is_in_flight(serve: Serve, shop: Shop, threads: int) -> None:
    """A request in the app, a large answer and a partly received body are finished."""
    rig = serve(shop, threads=threads)
    reader, writer, waiter = rig.client(receive_buffer=4096), rig.client(), rig.client()
    writer.send(POST + b"Content-Length: 10\r\n\r\n01234")
    reader.ask("/large")
    reader._more()
    waiter.ask("/wait")
    assert shop.entered.wait(PATIENCE)
    rig.engine.drain()
    shop.may_go.set()
    assert waiter.answer().body == b"/wait "
    waiter.close()
    writer.send(b"56789")
    assert writer.answer().body == b"/post 0123456789"
    writer.close()
    assert len(reader.answer().body) == LARGE
    reader.close()
    assert rig.ended()


@BOTH
def test_draining_an_idle_engine_ends_at_once(serve: Serve, shop: Shop, threads: int) -> None:
    """Without clients it does not wait; a second drain is not an error."""
    rig = serve(shop, threads=threads)
    rig.engine.drain()
    rig.engine.drain()
    assert rig.ended()


@BOTH
def test_draining_does_not_wait_for_silent_clients(serve: Serve, shop: Shop, threads: int) -> None:
    """An idle connection gets a moment for a request under way, then it is closed, keep-alive or not."""
    rig = serve(shop, threads=threads, keepalive=600)
    used, fresh = rig.client(), rig.client()
    assert used.get("/").status == "200 OK"
    rig.drain()
    assert used.rest() == fresh.rest() == b""
    assert rig.ended()


# -- what others see of it -------------------------------------------------------------------------------


@BOTH
def test_the_scoreboard_shows_requests_in_flight(serve: Serve, shop: Shop, threads: int) -> None:
    """Method, path without its query, and start are shown while the app works, and not afterwards."""
    rig = serve(shop, threads=threads)
    client = rig.client()
    assert client.get("/quick?token=secret").status == "200 OK"
    before = time.monotonic()
    client.send(b"PUT /wait?token=secret HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
    assert shop.entered.wait(PATIENCE)
    (flight,) = rig.scoreboard.in_flight(rig.cell)
    assert (flight.method, flight.path) == ("PUT", "/wait")
    assert before <= flight.started <= time.monotonic()
    assert flight.ident in shop.threads
    assert 1 <= rig.scoreboard.slots(rig.cell) <= threads + 1
    assert 0 < rig.scoreboard.heartbeat(rig.cell) <= time.monotonic()
    shop.may_go.set()
    assert client.answer().body == b"/wait hi"
    client.close()
    rig.engine.drain()
    assert rig.ended()
    assert rig.scoreboard.in_flight(rig.cell) == []


def test_the_scoreboard_shows_every_thread(serve: Serve) -> None:
    """Three requests in three threads are three entries."""
    all_there, done = threading.Barrier(4), threading.Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        all_there.wait(PATIENCE)
        assert done.wait(PATIENCE)
        start_response("200 OK", [])
        return []

    rig = serve(app, threads=4)
    clients = [rig.client() for _ in range(3)]
    for number, client in enumerate(clients):
        client.ask(f"/{number}")
    all_there.wait(PATIENCE)
    flights = rig.scoreboard.in_flight(rig.cell)
    done.set()
    assert sorted(flight.path for flight in flights) == ["/0", "/1", "/2"]
    assert len({flight.thread for flight in flights}) == len({flight.ident for flight in flights}) == 3
    assert [client.answer().status for client in clients] == ["200 OK"] * 3


@BOTH
def test_the_scoreboard_counts(serve: Serve, shop: Shop, threads: int) -> None:
    """Requests, errors, bytes and connections add up, over all threads."""
    rig = serve(shop, threads=threads)
    for _ in range(3):
        client = rig.client()
        for _ in range(5):
            client.get("/12345")
        client.close()
    assert rig.client().get("/error").status.startswith("500")
    for client in rig._clients:
        client.close()
    rig.engine.drain()
    assert rig.ended()
    counts = rig.scoreboard.counts(rig.cell)
    assert (counts.requests, counts.errors) == (16, 1)
    assert sum(counts.statuses) == sum(counts.histogram) == 16
    assert (counts.opened, counts.closed) == (4, 4)
    assert counts.bytes_sent == 15 * len("/12345 ") + len("Internal Server Error\n")


@BOTH
def test_heartbeat_while_no_request_is_in_the_app(serve: Serve, shop: Shop, threads: int) -> None:
    """Each pass of the loop writes the heartbeat, with and without requests."""
    rig = serve(shop, threads=threads)
    for _ in range(2):
        before = time.monotonic()
        until(lambda: rig.scoreboard.heartbeat(rig.cell) > before, "it beats")  # noqa: B023


def test_heartbeat_while_all_threads_are_in_the_app(serve: Serve) -> None:
    """Then the watcher polls, and writes the heartbeat."""
    gate = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        gate.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    rig = serve(app, threads=2)
    clients = [rig.client() for _ in range(2)]
    for client in clients:
        client.ask()
    try:
        until(lambda: len(rig.scoreboard.in_flight(rig.cell)) == 2, "both threads are in the app")
        for _ in range(2):
            before = time.monotonic()
            until(lambda: rig.scoreboard.heartbeat(rig.cell) > before, "it beats")  # noqa: B023
    finally:
        gate.set()
    for client in clients:
        client.answer()


@BOTH
def test_long_names_fit_the_scoreboard(serve: Serve, shop: Shop, threads: int) -> None:
    """A target that is longer than its field is cut there, and nowhere else."""
    rig = serve(shop, threads=threads)
    target = "/" + "x" * 4000
    client = rig.client()
    assert client.get(target).body == target.encode() + b" "
    assert client.get("/short").body == b"/short "


@BOTH
def test_the_quota_calls_once(serve: Serve, shop: Shop, threads: int) -> None:
    """`on_quota` is called after the last request of the quota, once; the engine serves until drained."""
    rig = serve(shop, threads=threads, quota=5)
    client = rig.client()
    for number in range(4):
        client.get(f"/{number}")
    assert rig.quotas == []
    for number in range(4, 12):
        assert client.get(f"/{number}").status == "200 OK"
    assert rig.quotas == [5]


@BOTH
def test_the_access_log(serve: Serve, shop: Shop, threads: int) -> None:
    """A line for each request that reached the app, with what was sent."""
    rig = serve(shop, threads=threads, access=True)
    client = rig.client()
    client.get("/a?b=c")
    client.send(b"HEAD /head HTTP/1.1\r\nHost: x\r\n\r\n")
    client.answer("HEAD")
    client.get("/error")
    client.close()
    rig.engine.drain()
    assert rig.ended()
    assert rig.access_log() == [
        "GET /a?b=c HTTP/1.1 200 3",
        "HEAD /head HTTP/1.1 200 0",
        "GET /error HTTP/1.1 500 22",
    ]


# -- out of descriptors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "number"), [(1, errno.ENOMEM), (4, errno.EMFILE)])
def test_accepting_pauses(serve: Serve, shop: Shop, number: int, threads: int) -> None:
    """No descriptors or memory, and no connection can be evicted: one line in the log, then it continues."""
    rig = serve(shop, threads=threads)
    rig.listener.errors.append(OSError(number, os.strerror(number)))
    after = rig.client()
    after.ask("/after")
    assert after.answer().body == b"/after "
    assert rig.log().count("accept_paused") == 1


def test_accepting_survives_other_errors(serve: Serve, shop: Shop) -> None:
    """A client that disconnected before it was accepted, or a sibling that was faster, is not an error."""
    rig = serve(shop)
    rig.listener.errors += [ConnectionAbortedError(), BlockingIOError(errno.EAGAIN, "")]
    assert rig.client().get("/").status == "200 OK"
    assert rig.log() == ""


STARVED = """
import os, resource, sys
from pathlib import Path
from tests.unit.workers.rig import Rig

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"fed"]

with Rig(Path(sys.argv[1]), app, keepalive=600, threads=int(sys.argv[2])) as rig:
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, free + 2))  # room for two connections
    print(rig.address[1], flush=True)
    sys.stdin.read()  # until the test has seen enough
print(rig.log())
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_running_out_of_descriptors(tmp_path: Path, threads: int) -> None:
    """With a real limit: the longest idle connection is closed, and accepting does not pause."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", STARVED, str(tmp_path), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        clients: list[Client] = []
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))
            for _ in range(2):
                clients.append(Client(address))
                assert clients[-1].get().body == b"fed"
            third = Client(address)
            clients.append(third)
            third.ask()
            assert third.answer().body == b"fed"
            assert clients[0].rest() == b""
            assert clients[1].get().body == b"fed"
            for client in clients:
                client.close()
            log, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
            assert log.strip() == ""
        finally:
            for client in clients:
                client.close()
            process.kill()
