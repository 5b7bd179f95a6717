"""What clients may cost: time, bytes, connections. A refused request is answered, counted and logged once."""

import gc
import io
import json
import math
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ostler.http1.request import Rules
from ostler.logs.limiter import FIRST
from ostler.scoreboard.layout import RULES
from ostler.settings.table import Settings
from ostler.workers import sweeper as sweeper_module
from ostler.workers import thread_engine as engine_module
from ostler.workers.connection import Connection, Limits
from ostler.workers.connection_limits import AddressCounts
from ostler.workers.eviction import MOVING, SLOW, rank
from ostler.workers.handoff import HandOff
from ostler.workers.system_calls import PLAIN
from ostler.workers.tls import make_context
from ostler.wsgi.body import BufferedBody, StreamedBody, _Unlinked
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import ClientGone
from tests.kit.certificates import Authority
from tests.kit.daemon import until
from tests.kit.threads import run_at_once
from tests.unit.workers.rig import PATIENCE, Client, Rig, Serve

Start = Callable[..., Any]
BOTH = pytest.mark.parametrize("threads", [1, 4])
SECOND = 1_000_000_000
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /post HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def echo(environ: Environ, start_response: Start) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode(), body]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are checked twenty times a second, not once."""
    for module in (engine_module, sweeper_module):
        monkeypatch.setattr(module, "SWEEP", 0.05)


def trickle(client: Client, byte: bytes) -> float:
    """Send a byte every 20 ms until an answer arrives; returns how long that took (s)."""
    began = time.monotonic()
    while not select.select([client.sock], [], [], 0.02)[0]:
        assert time.monotonic() - began < PATIENCE
        client.send(byte)
    return time.monotonic() - began


# -- time ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
@BOTH
@pytest.mark.parametrize(
    "begun",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        POST + b"Content-Length: 100000\r\n\r\n",
        CHUNKED + b"ffff\r\n",
    ],
)
def test_bytes_that_trickle_push_no_deadline_back(serve: Serve, threads: int, begun: bytes) -> None:
    """A head, and a body, must be complete in time: 408, counted and logged once; the app is not called."""
    called: list[str] = []
    rig = serve(
        lambda environ, _: called.append(environ["PATH_INFO"]) or [],
        threads=threads,
        access=True,
        header_timeout=0.4,
        body_timeout=0.4,
        body_min_rate=0,
    )
    client = rig.client()
    client.send(begun)
    took = trickle(client, b"E")
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == ("408 Request Timeout", "close")
    assert took > 0.3
    assert client.rest() == b""
    client.close()
    rig.engine.drain()
    assert rig.ended()
    assert called == []
    assert rig.counts().statuses == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    (line,) = rig.access_log()
    assert line.endswith(f" 408 {len(answer.body)}")


@pytest.mark.usefixtures("often")
def test_time_that_others_take_is_not_the_clients(serve: Serve) -> None:
    """A request that arrived in time is answered,
    even if the only thread was in the app until after the time-out.
    """
    entered, may_go = threading.Event(), threading.Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            entered.set()
            assert may_go.wait(PATIENCE)
        return echo(environ, start_response)

    # Without a hand-off there is no watcher that would receive meanwhile.
    rig = serve(app, header_timeout=0.3, body_timeout=0.3, body_min_rate=0)
    head, body, busy = rig.client(), rig.client(), rig.client()
    head.send(b"GET /head HTTP/1.1\r\nHo")
    body.send(POST + b"Content-Length: 4\r\n\r\n12")
    until(
        lambda: sum(c.parser.receiving for c in rig.engine.parts.table.open.values()) == 2, "both have begun"
    )
    busy.ask("/wait")
    assert entered.wait(PATIENCE)
    head.send(b"st: x\r\n\r\n")
    body.send(b"34")
    threading.Event().wait(0.5)  # the time-outs pass while no thread can poll
    may_go.set()
    assert busy.answer().body == b"/wait"
    assert head.answer().body == b"/head"
    assert body.answer().body == b"/post1234"


class Times:
    """A connection whose deadlines are computed at simulated times (s)."""

    def __init__(self, **settings: Any) -> None:
        self.ours, self.client = socket.socketpair()
        self.connection = Connection(
            self.ours,
            "",
            "",
            Rules(),
            lambda: BufferedBody(1000, None),
            Limits.of(Settings(**settings)),
            100 * SECOND,
        )

    def feed(self, data: bytes, at: float) -> None:
        self.connection.parser.feed(data)
        self.connection.note_progress(int(at * SECOND))

    @property
    def deadline(self) -> float:
        return self.connection.receive_deadline() / SECOND

    def close(self) -> None:
        self.ours.close()
        self.client.close()


@pytest.fixture
def times() -> Iterator[Callable[..., Times]]:
    made: list[Times] = []

    def make(**settings: Any) -> Times:
        made.append(Times(**settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_head_begins_with_its_first_byte(times: Callable[..., Times]) -> None:
    """Its time does not count from the connection, which may have been idle; nor from its last byte."""
    connection = times(header_timeout=15.0)
    assert connection.deadline == 115
    connection.feed(b"GET / HTTP/1.1\r\n", at=160)
    assert connection.deadline == 175
    connection.feed(b"Host: x\r\n", at=170)
    assert connection.deadline == 175


def test_a_body_has_its_own_time(times: Callable[..., Times]) -> None:
    """It counts from the end of the head; from its third second on `body_min_rate` applies."""
    connection = times(header_timeout=15.0, body_timeout=30.0, body_min_rate=100)
    connection.feed(POST, at=110)
    connection.feed(b"Content-Length: 100000\r\n\r\n", at=120)
    assert connection.deadline == 123
    connection.feed(b"x" * 500, at=122)
    assert connection.deadline == 128
    connection.feed(b"x" * 50, at=125)
    assert connection.deadline == 128.5


def test_a_body_may_pause(times: Callable[..., Times]) -> None:
    """A body that was fast may pause for `body_timeout`, and no longer."""
    connection = times(body_timeout=30.0, body_min_rate=100)
    connection.feed(POST + b"Content-Length: 100000\r\n\r\n", at=120)
    connection.feed(b"x" * 50_000, at=121)
    assert connection.deadline == 151


def test_a_body_without_a_rate(times: Callable[..., Times]) -> None:
    """Only `body_timeout` applies."""
    connection = times(body_timeout=30.0, body_min_rate=0)
    connection.feed(POST + b"Content-Length: 100000\r\n\r\n", at=120)
    connection.feed(b"x" * 50_000, at=121)
    assert connection.deadline == 150


def test_no_limits_on_time(times: Callable[..., Times]) -> None:
    """0 means no limit."""
    connection = times(header_timeout=0, body_timeout=0)
    connection.feed(POST, at=110)
    assert connection.deadline == 0
    connection.feed(b"Content-Length: 10\r\n\r\n", at=120)
    assert connection.deadline == 0


def test_the_next_request_has_its_own_time(times: Callable[..., Times]) -> None:
    """Half of a second request follows a first one: its time counts from its own beginning."""
    connection = times(header_timeout=15.0)
    connection.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", at=110)
    connection.feed(b"GET /", at=140)
    assert connection.deadline == 155


@pytest.mark.usefixtures("often")
@BOTH
def test_clients_that_send_nothing_are_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A connection without a request, and one after a request, are closed without an answer,
    and no request is counted.
    """
    monkeypatch.setattr(sweeper_module, "_FIRST_REQUEST", SECOND // 5)
    rig = serve(echo, threads=threads, keepalive=0.2)
    fresh, used = rig.client(), rig.client()
    assert used.get().status == "200 OK"
    assert fresh.rest() == used.rest() == b""
    until(lambda: rig.counts().closed == 2, "both are closed")
    assert rig.counts().requests == 1


# -- bytes -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("request_", "status", "line", "rule"),
    [
        (POST + b"Content-Length: 1001\r\n\r\n", "413", "POST /post HTTP/1.1", "limit_request_body"),
        (CHUNKED + b"3e9\r\n" + b"x" * 1001, "413", "POST /post HTTP/1.1", "limit_request_body"),
        (b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "414", "GET /xxx", "limit_request_line"),
        (GET + b"X: " + b"x" * 9000 + b"\r\n\r\n", "431", "GET / HTTP/1.1", "limit_request_field_size"),
        (GET + b"a: b\r\n" * 11 + b"\r\n", "431", "GET / HTTP/1.1", "limit_request_fields"),
        (GET + b"Expect: everything\r\n\r\n", "417", "GET / HTTP/1.1", "expect"),
        (b"GET / HTTP/1.1\r\n\r\n", "400", "GET / HTTP/1.1", "missing_host"),
        (b"what is this?\r\n\r\n", "400", "what is this?", "request_line"),
    ],
)
def test_what_is_refused(
    serve: Serve, threads: int, request_: bytes, status: str, line: str, rule: str
) -> None:
    """The answer gives the reason and the connection ends cleanly; one count, one line in the access log,
    and one in the log that names the rule and the client.
    """
    rig = serve(
        echo,
        threads=threads,
        access=True,
        limit_request_body=1000,
        limit_request_line=1000,
        limit_request_fields=10,
        limit_request_field_size=2000,
    )
    client = rig.client()
    client.send(request_)
    answer = client.answer()
    assert (answer.status[:3], answer.headers["connection"]) == (status, "close")
    assert client.rest() == b""
    client.close()
    rig.engine.drain()
    assert rig.ended()
    counts = rig.counts()
    assert (counts.statuses[4], counts.requests, counts.bytes_sent) == (1, 1, len(answer.body))
    (logged,) = rig.access_log()
    assert logged.startswith(line)
    assert logged.endswith(f" {status} {len(answer.body)}")
    assert {name: n for name, n in zip(RULES, counts.refused, strict=True) if n} == {rule: 1}
    (event,) = map(json.loads, rig.log().splitlines())
    assert (event["event"], event["level"], event["client"]) == ("request_refused", "info", "127.0.0.1")
    assert (event["status"], event["rule"]) == (int(status), rule)
    if rule == "missing_host":
        assert event["reason"] == "Host is missing (RFC 9112 section 3.2)"


@BOTH
def test_limits_are_those_that_are_set(serve: Serve, threads: int) -> None:
    """Sizes exactly at the limit are accepted."""
    rig = serve(echo, threads=threads, limit_request_body=1000)
    client = rig.client()
    client.send(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
    assert client.answer().status == "200 OK"
    client.send(CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")
    assert client.answer().status == "200 OK"


@BOTH
@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 5000\r\n\r\n" + b"x" * 5000,
        b"Transfer-Encoding: chunked\r\n\r\n1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n",
    ],
)
def test_a_spooled_body_whose_end_does_not_fit(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, threads: int, framed: bytes
) -> None:
    """The disk is full when the last bytes, which were buffered until then, are written: 507, counted once.

    The app is not called; it is not an internal error, and the next client is served.
    """
    monkeypatch.setattr(
        "ostler.wsgi.body._unlinked", lambda _folder: _Unlinked(io.FileIO("/dev/full", "rb+"))
    )
    rig = serve(echo, threads=threads, buffer_request=0)
    client = rig.client()
    client.send(POST + framed)
    assert client.answer().status == "507 Insufficient Storage"
    assert client.rest() == b""
    assert rig.client().get("/next").body == b"/next"
    until(lambda: rig.counts().requests == 2, "both are counted")
    assert rig.counts().statuses[2:6] == [1, 0, 0, 1]
    assert "body_not_stored" in rig.log()
    assert "internal_error" not in rig.log()


# -- connections -----------------------------------------------------------------------------------------


@BOTH
def test_the_longest_idle_make_room(serve: Serve, threads: int) -> None:
    """At the limit the longest idle connection is closed; one in the middle of a request stays."""
    rig = serve(echo, threads=threads, worker_connections=4, keepalive=600)
    half = rig.client()
    half.send(b"GET /half HTTP/1.1\r\nHo")
    until(lambda: rig.counts().opened == 1, "it is accepted")

    def idle() -> int:
        return sum(
            c.watched and c.answered_at > 0 and c.is_idle for c in list(rig.engine.parts.table.open.values())
        )

    for number in range(20):
        assert rig.client().get(f"/{number}").body == b"/%d" % number
        # A client may have its answer before the thread has recorded that. Without an idle connection, one
        # with half a request is closed.
        until(lambda: idle() == rig.counts().connections - 1, "all that were answered idle")
    assert rig.counts().connections <= 4
    half.send(b"st: x\r\n\r\n")
    assert half.answer().body == b"/half"
    first = rig._clients[1]
    assert first.rest() == b""


@BOTH
def test_slow_senders_make_room(serve: Serve, threads: int) -> None:
    """All connections have incomplete requests: the one that has sent least for longest gets 408."""
    rig = serve(echo, threads=threads, worker_connections=2, keepalive=600, access=True)
    slowest = rig.client()
    slowest.send(b"GET /half HTTP/1.1\r\nHo")
    until(lambda: rig.counts().opened == 1, "it is accepted")
    faster = rig.client()
    faster.send(b"GET /half HTTP/1.1\r\nX: " + b"x" * 1000)
    until(lambda: rig.counts().opened == 2, "both are accepted")
    waiting = rig.client()
    assert waiting.get("/waiting").body == b"/waiting"
    assert slowest.answer().status == "408 Request Timeout"
    waiting.close()
    faster.send(b"\r\nHost: x\r\n\r\n")
    assert faster.answer().body == b"/half"
    assert rig.log().count("connections_evicted") == 1
    until(lambda: len(rig.access_log()) == 3, "all are in the access log")


@BOTH
def test_connections_of_one_address(serve: Serve, threads: int) -> None:
    """More than `limit_connections_per_address` are closed at once; when one ends another is accepted."""
    rig = serve(echo, threads=threads, limit_connections_per_address=2, keepalive=600)
    first, second, third = rig.client(), rig.client(), rig.client()
    assert first.get("/1").body == b"/1"
    assert second.get("/2").body == b"/2"
    assert third.rest() == b""
    first.close()
    until(lambda: rig.counts().connections == 1, "one has ended")
    assert rig.client().get("/4").body == b"/4"
    assert rig.log().count("too_many_connections") == 1


def test_connections_of_one_address_behind_a_proxy(serve: Serve) -> None:
    """With PROXY headers each counts for its client only, however many wait for their header."""
    rig = serve(echo, proxy_protocol="auto", limit_connections_per_address=2, keepalive=600)

    def header(host: str) -> bytes:
        return f"PROXY TCP4 {host} 192.0.2.9 1 2\r\n".encode()

    clients = [rig.client() for _ in range(4)]
    until(lambda: rig.counts().opened == 4, "all are accepted")
    for number, client in enumerate(clients):
        client.send(header(f"192.0.2.{number % 2}"))
        assert client.get("/ok").body == b"/ok"
    beyond = rig.client()
    beyond.send(header("192.0.2.1"))
    assert beyond.rest() == b""
    # Connections without a header, made by the proxy itself, count for the proxy.
    assert [rig.client().get("/own").body for _ in range(2)] == [b"/own", b"/own"]
    own = rig.client()
    own.send(b"GET / HTTP/1.1\r\n")
    with suppress(ConnectionResetError):
        assert own.rest() == b""


def test_connections_of_one_address_from_siblings(serve: Serve, handoff: HandOff) -> None:
    """A connection from a sibling counts for its client as well, and not for the proxy."""
    rig = serve(echo, handoff=handoff, limit_connections_per_address=1, keepalive=600)
    with ExitStack() as stack:
        for number in range(3):
            ours, theirs = (stack.enter_context(sock) for sock in socket.socketpair())
            peer_info = {"REMOTE_ADDR": f"192.0.2.{number}"}
            assert handoff.send(Given(theirs.fileno(), peer_info))
            theirs.close()
            ours.settimeout(PATIENCE)
            ours.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert ours.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert rig.engine.parts.table.addresses._counts == {f"192.0.2.{number}": 1 for number in range(3)}


@dataclass
class Given:
    """A connection from a sibling."""

    fd: int
    peer_info: dict[str, str] | None
    tls: bool = False
    listener: str = ""
    answered_at: int = 1
    waiting_since: int = 0


def test_threads_count_addresses_together() -> None:
    """One thread closes its connection while another accepts: all are counted correctly."""
    counts = AddressCounts(1000)

    def count() -> None:
        for _ in range(20_000):
            address = counts.add("192.0.2.1")
            assert address is not None
            counts.remove(address)

    run_at_once([count] * 4)
    assert counts._counts == {}


@BOTH
def test_what_clients_cause_is_logged_a_few_times(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Bodies that can't be stored, and connections beyond the limit: some lines, then their number."""

    def full() -> BufferedBody:
        raise OSError("no room")

    rig = serve(echo, threads=threads, limit_connections_per_address=1)
    rig.engine.parts.factory.new_body = full
    now = 0.0
    monkeypatch.setattr(rig.engine.parts.limited, "_clock", lambda: now)
    for number in range(30):
        with closing(rig.client()) as client:
            client.send(POST + b"Content-Length: 5\r\n\r\n")
            assert client.answer().status == "507 Insufficient Storage"
            assert rig.client().rest() == b""
            client.rest()
        until(lambda number=number: rig.counts().closed == 2 * number + 2, "both have ended")  # type: ignore[misc]
    now = 100.0
    until(lambda: rig.log().count("log_suppressed") == 3, "all are summed up")
    for event in ("body_not_stored", "request_refused", "too_many_connections"):
        assert rig.log().count(f'"event": "{event}"') == FIRST
        (line,) = (line for line in rig.log().splitlines() if f'"of": "{event}"' in line)
        assert json.loads(line)["lines"] == 30 - FIRST


def test_an_answer_by_a_unix_socket_moves() -> None:
    """It is unknown how much a local proxy has read, but the kernel accepts more of it as the proxy reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        limits = Limits.of(Settings())
        connection = Connection(ours, "", "", Rules(), lambda: BufferedBody(1000, None), limits, 1)
        connection.send(b"x" * 4_000_000)
        assert connection.output
        began = connection.output.began
        assert rank(connection, began + 10 * SECOND, 500) == (SLOW, 100.0)
        for _ in range(2):
            while True:
                try:
                    theirs.recv(1 << 20)
                except BlockingIOError:
                    break
            connection.flush()
        found = rank(connection, began + 10 * SECOND, 500)
        assert found is not None
        assert found[0] == MOVING
        connection.output.close()


def test_an_app_waits_for_a_client_that_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly: the kernel may report no room for minutes. One that reads nothing is given up."""
    taken, waits = 0, 0

    def nothing(_fd: int, _event: int, _deadline: int) -> bool:
        nonlocal taken, waits
        waits += 1
        taken += waits < 4
        return False

    monkeypatch.setattr("ostler.workers.connection.bytes_acked", lambda _sock: taken)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        limits = Limits.of(Settings(buffer_response=1000, buffer_response_file=0))
        calls = replace(PLAIN, wait_for=nothing)
        connection = Connection(ours, "", "", Rules(), lambda: BufferedBody(1000, None), limits, 1, calls)
        connection.send(b"x" * 4_000_000)
        with pytest.raises(ClientGone):
            connection.send(b"x" * 4_000_000)
        assert waits == 4
        assert connection.output is not None
        connection.output.close()


def reset(address: tuple[str, int]) -> None:
    """Connect, and disconnect with a reset."""
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    certificate = authority.issue("localhost")
    context = make_context(Settings(certfile=certificate.cert, keyfile=certificate.key), None)
    assert context is not None
    return context


def speak_tls(client: Client) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client.sock = context.wrap_socket(client.sock)


@BOTH
@pytest.mark.parametrize("tls", [False, True])
def test_clients_that_are_gone_before_they_are_accepted(
    tmp_path: Path, context: ssl.SSLContext, threads: int, tls: bool
) -> None:
    """Connections that were reset in the listener's queue have no effect, with and without TLS."""
    rig = Rig(tmp_path, echo, threads=threads, tls=context if tls else None)
    for _ in range(3):
        reset(rig.address)
    with rig:
        for _ in range(3):
            client = rig.client()
            if tls:
                speak_tls(client)
            assert client.get("/after").body == b"/after"
            reset(rig.address)
        assert rig.log() == ""


@BOTH
def test_tls_connections_end_when_their_worker_leaves(
    serve: Serve, context: ssl.SSLContext, handoff: Any, threads: int
) -> None:
    """They can't be handed off, so their next answer has `Connection: close`."""
    rig = serve(echo, threads=threads, handoff=handoff, tls=context)
    client = rig.client()
    speak_tls(client)
    assert "connection" not in client.get().headers
    rig.drain(hand_over=True)
    assert client.get().headers["connection"] == "close"
    client.close()
    assert rig.ended()
    assert rig.counts().handed_off == 0


# -- bodies that are read while they come ------------------------------------------------------------------


@BOTH
def test_a_body_is_read_while_it_comes(serve: Serve, threads: int) -> None:
    """The client sends its next part when it has received the last one back."""

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        while part := environ["wsgi.input"].read1():
            yield part

    client = serve(app, threads=threads, stream_request=True).client()
    client.send(CHUNKED)
    client._buffer = b""
    for part in (b"one", b"two", b"three"):
        client.send(b"%x\r\n%b\r\n" % (len(part), part))
        assert client._until(part)
    client.send(b"0\r\n\r\n")
    assert client.rest() == b"\r\n0\r\n\r\n"


@BOTH
def test_a_streamed_body_that_came_whole(serve: Serve, threads: int) -> None:
    """It is a body like any other, and its connection continues."""
    client = serve(echo, threads=threads, stream_request=True).client()
    for _ in range(3):
        client.send(POST + b"Content-Length: 5\r\n\r\nhello")
        assert client.answer().body == b"/posthello"


@BOTH
def test_a_streamed_body_that_the_app_leaves(serve: Serve, threads: int) -> None:
    """The answer arrives although the client has not finished and continues to send;
    then the connection ends without a reset.
    """

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        first = environ["wsgi.input"].read(5)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [first]

    client = serve(app, threads=threads, stream_request=True).client()
    client.send(POST + b"Content-Length: 10000000\r\n\r\nhello")
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"hello", "close")
    client.send(b"x" * 300_000)
    assert client.rest() == b""


@BOTH
def test_a_streamed_body_with_a_mistake(serve: Serve, threads: int) -> None:
    """A malformed chunk while the app reads: 400, counted once."""
    rig = serve(echo, threads=threads, access=True, stream_request=True)
    client = rig.client()
    client.send(CHUNKED + b"5\r\nhello\r\n")
    until(lambda: rig.scoreboard.in_flight(rig.cell), "the app reads")
    client.send(b"no chunk\r\n")
    assert client.answer().status == "400 Bad Request"
    assert client.rest() == b""
    client.close()
    assert rig.client().get("/next").body == b"/next"
    for each in rig._clients:
        each.close()
    rig.engine.drain()
    assert rig.ended()
    assert rig.counts().statuses[2:6] == [1, 0, 1, 0]
    assert [line.split()[-2] for line in rig.access_log()] == ["400", "200"]
    (event,) = map(json.loads, rig.log().splitlines())
    assert (event["event"], event["rule"]) == ("request_refused", "chunked")


@BOTH
def test_a_streamed_body_whose_client_goes_away(serve: Serve, threads: int) -> None:
    """The app's read raises; it is not counted as a 5xx, and not logged as an error of the app."""
    seen: list[BaseException] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            return echo(environ, start_response)
        except Exception as error:
            seen.append(error)
            raise

    rig = serve(app, threads=threads, stream_request=True)
    client = rig.client()
    client.send(POST + b"Content-Length: 10\r\n\r\nhello")
    until(lambda: rig.scoreboard.in_flight(rig.cell), "the app reads")
    client.close()
    until(lambda: rig.counts().closed == 1, "it is noticed")
    assert len(seen) == 1
    assert rig.counts().errors == 0
    assert rig.log() == ""


@BOTH
def test_nothing_is_left_of_a_streamed_body(serve: Serve, threads: int) -> None:
    """Requests are not tracked by the garbage collector,
    so a reference cycle through one would never be found.
    """

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if environ["PATH_INFO"] == "/post":
            return echo(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"unread"]

    alive: set[int] = set()

    class Counted(StreamedBody):
        def __init__(self) -> None:
            super().__init__()
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    rig = serve(app, threads=threads, stream_request=True)
    rig.engine.parts.factory.new_body = Counted
    for number in range(20):
        with closing(rig.client()) as client:
            target = (b"/post", b"/left", b"/gone")[number % 3]
            client.send(b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
            if target == b"/post":
                until(lambda: rig.scoreboard.in_flight(rig.cell), "the app reads")
                client.send(b"hello")
            if target != b"/gone":
                assert client.answer().status == "200 OK"
    until(lambda: rig.counts().closed == 20, "all are closed")
    # A few others may be referenced by a thread or a parser.
    until(lambda: gc.collect() >= 0 and len(alive) <= 4, "bodies are gone")


@BOTH
def test_a_streamed_body_is_asked_for_when_it_is_read(serve: Serve, threads: int) -> None:
    """The app's first read sends `100 Continue`; without a read it is not sent."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if environ["PATH_INFO"] == "/post":
            return echo(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"no"]

    rig = serve(app, threads=threads, stream_request=True)
    fields = b"Host: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    client = rig.client()
    client.send(b"POST /post HTTP/1.1\r\n" + fields)
    assert client.answer().status == "100 Continue"
    client.send(b"hello")
    assert client.answer().body == b"/posthello"
    client = rig.client()
    client.send(b"POST /other HTTP/1.1\r\n" + fields)
    assert client.answer().status == "403 Forbidden"
    assert client.rest() == b""


def test_a_streamed_body_must_come_in_time(serve: Serve) -> None:
    """A client that stops in the middle occupies its thread no longer than `body_timeout`."""
    rig = serve(echo, stream_request=True, body_timeout=0.3, body_min_rate=0)
    client = rig.client()
    client.send(POST + b"Content-Length: 10\r\n\r\nhello")
    client.rest()
    assert rig.client().get("/next").body == b"/next"
    assert rig.counts().errors == 0


@pytest.mark.parametrize("threads", [1, 4])
def test_waiting_for_a_body_is_the_clients_time(serve: Serve, threads: int) -> None:
    """The supervisor sees that the app waits, and when it last got something."""
    rig = serve(echo, stream_request=True, threads=threads)
    client = rig.client()
    client.send(POST + b"Content-Length: 10\r\n\r\nhello")

    def waits() -> bool:
        return [r.progressed for r in rig.scoreboard.in_flight(rig.cell)] == [math.inf]

    until(waits, "the app waits for more")
    (before,) = rig.scoreboard.in_flight(rig.cell)
    assert before.deadline(30.0) is None
    assert before.deadline(30.0, limit=100.0) == before.started + 100.0
    client.send(b"world")
    assert client.answer().body == b"/posthelloworld"


def test_the_apps_own_time_is_not_the_clients(serve: Serve) -> None:
    """An app that works between two reads for longer than `body_timeout` still gets the data that has
    arrived.
    """
    worked = threading.Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        first = environ["wsgi.input"].read(5)
        threading.Event().wait(0.5)
        worked.set()
        second = environ["wsgi.input"].read()
        third = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [first, second, third]

    rig = serve(app, stream_request=True, body_timeout=0.4, body_min_rate=0)
    client = rig.client()
    client.send(POST + b"Content-Length: 10\r\n\r\nhel")
    until(lambda: rig.scoreboard.in_flight(rig.cell), "the app reads")
    client.send(b"lo")
    assert worked.wait(PATIENCE)
    client.send(b"world")
    assert client.answer().body == b"helloworld"


# -- answers that clients are slow to take -----------------------------------------------------------------

SIZE = 24 << 20


@BOTH
def test_a_large_file_to_slow_readers(serve: Serve, tmp_path: Path, threads: int) -> None:
    """More slow readers than threads occupy no thread;
    each gets the rest of the file, and no file stays open.
    """
    path = tmp_path / "file"
    with path.open("wb") as file:
        for number in range(SIZE // (1 << 20)):
            file.write(bytes([number]) * (1 << 20))

    def app(environ: Environ, start_response: Start) -> Any:
        if environ["PATH_INFO"] != "/file":
            return echo(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        opened = path.open("rb")
        opened.seek(1 << 19)
        return environ["wsgi.file_wrapper"](opened)

    rig = serve(app, threads=threads, keepalive=60)
    slow = [rig.client(receive_buffer=4096) for _ in range(threads + 1)]
    for client in slow:
        client.ask("/file")
    quick = rig.client()
    for number in range(20):
        assert quick.get(f"/{number}").body == b"/%d" % number
    expected = path.read_bytes()[1 << 19 :]
    for client in slow:
        assert client.answer().body == expected
        assert client.get("/after").body == b"/after"
    assert str(path) not in open_files()


def open_files() -> list[str]:
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except OSError:
            pass  # the descriptor of the listing itself
    return names


@BOTH
def test_a_stream_that_fits_the_file_costs_no_app_time(serve: Serve, tmp_path: Path, threads: int) -> None:
    """The app is done long before the slow reader; its answer waits in a temporary file."""
    done = threading.Event()
    folder = tmp_path / "spill"
    folder.mkdir()

    def app(_environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for number in range(SIZE >> 16):
            yield bytes([number & 255]) * (1 << 16)
        done.set()

    rig = serve(app, threads=threads, buffer_response=100_000, tmp_upload_dir=str(folder))
    client = rig.client(receive_buffer=4096)
    client.ask()
    assert done.wait(PATIENCE)
    assert any(name.startswith(str(folder)) for name in open_files())
    body = client.answer().body
    assert body == b"".join(bytes([number & 255]) * (1 << 16) for number in range(SIZE >> 16))
    until(lambda: not any(name.startswith(str(folder)) for name in open_files()), "the file is closed")


@BOTH
def test_pipelined_requests_wait_behind_an_answer(serve: Serve, threads: int) -> None:
    """They do not reach the app before the client has read the answers that it already has."""
    called: list[str] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        called.append(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x" * SIZE]

    rig = serve(app, threads=threads)
    client = rig.client(receive_buffer=4096)
    client.ask("/1")
    client.ask("/2")
    client._more()
    assert rig.client().get("/other").status == "200 OK"
    assert "/2" not in called
    assert [len(client.answer().body) for _ in range(2)] == [SIZE, SIZE]


# -- defects and races -------------------------------------------------------------------------------------


def test_a_long_request_keeps_its_connection(serve: Serve) -> None:
    """Another long request ends just when it begins; it is answered, although it takes longer than keepalive.

    The thread that then returns from the app must not withdraw the offer of the other one.
    """
    entered, may_go = threading.Event(), threading.Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if environ["PATH_INFO"] == "/first":
            entered.set()
            assert may_go.wait(PATIENCE)
        if environ["PATH_INFO"] == "/second":
            may_go.set()
            threading.Event().wait(1.5)
        return echo(environ, start_response)

    rig = serve(app, threads=2, keepalive=0.2)
    first, second = rig.client(), rig.client()
    assert second.get("/before").status == "200 OK"
    first.ask("/first")
    assert entered.wait(PATIENCE)
    second.ask("/second")
    assert first.answer().body == b"/first"
    assert second.answer().body == b"/second"


def test_a_defect_in_any_thread_ends_the_worker(serve: Serve) -> None:
    """It is logged, and the worker ends and is replaced; it does not hang without a leader."""
    may_go = threading.Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if threading.current_thread() is rig._thread:
            assert may_go.wait(PATIENCE)  # so that the other thread becomes the leader
        return echo(environ, start_response)

    rig = serve(app, threads=2)

    def defect(_now: int) -> None:
        if threading.current_thread() is not rig._thread:
            raise ValueError("a defect of ours")

    rig.engine._each_second = defect  # type: ignore[method-assign]
    rig.client().ask("/")
    until(lambda: "a defect of ours" in rig.log(), "the other thread fails")
    may_go.set()
    assert rig.ended()


def test_the_listeners_may_go_at_any_moment(tmp_path: Path) -> None:
    """`abandon` is called, as by a signal handler, while a leader accepts: no thread fails, it ends."""
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Rig(folder, echo, threads=2) as rig:
            stop = threading.Event()

            def visit(rig: Rig = rig, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    try:
                        client = Client(rig.address)
                        client.sock.settimeout(1.0)
                    except OSError:
                        return
                    try:
                        client.get("/", "Connection: close")
                    except (OSError, AssertionError):
                        return  # it was not accepted any more
                    finally:
                        client.close()

            visitors = [threading.Thread(target=visit) for _ in range(3)]
            for visitor in visitors:
                visitor.start()
            until(lambda rig=rig: rig.counts().opened > 10, "clients come")
            rig.engine.abandon()
            until(lambda rig=rig: rig.listener.fileno() < 0, "the listener is closed")
            stop.set()
            for visitor in visitors:
                visitor.join(PATIENCE)
            assert rig.ended()
            assert rig.failure is None
            assert rig.log() == ""


class Visitor:
    """Sends all kinds of requests for a while; records the answered and the unanswered ones."""

    def __init__(self, rig: Rig, number: int, until_: float) -> None:
        self.rig, self.number, self.until = rig, number, until_
        self.random = random.Random(number)
        self.asked = 0
        self.answered: list[str] = []
        self.abandoned: list[str] = []
        self.wrong: list[object] = []
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                self.visit(Client(self.rig.address))
        except Exception as error:
            self.wrong.append(error)

    def visit(self, client: Client) -> None:
        try:
            for _ in range(self.random.randrange(1, 12)):
                act = self.random.choice([self.ask, self.ask, self.ask, self.pipeline, self.post])
                act(client)
            self.random.choice([self.leave, self.half, lambda _client: None])(client)
        finally:
            client.close()

    def target(self) -> str:
        self.asked += 1
        kind = self.random.choices(["quick", "slow", "large", "parts"], [20, 3, 1, 2])[0]
        return f"/{kind}/{self.number}/{self.asked}"

    def check(self, client: Client, target: str) -> None:
        body = client.answer().body
        if body.rstrip(b".") != target.encode():
            self.wrong.append((target, body[:100]))
        self.answered.append(target)

    def ask(self, client: Client) -> None:
        target = self.target()
        client.ask(target)
        self.check(client, target)

    def pipeline(self, client: Client) -> None:
        targets = [self.target() for _ in range(4)]
        client.send(b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode() for target in targets))
        for target in targets:
            self.check(client, target)

    def post(self, client: Client) -> None:
        target = self.target()
        client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc" % target.encode())
        client.send(b"def")
        self.check(client, target)

    def leave(self, client: Client) -> None:
        target = self.target()
        self.abandoned.append(target)
        client.ask(target)

    def half(self, client: Client) -> None:
        client.send(b"GET /half HTTP/1.1\r\nHost:")


def test_each_request_is_answered_once(serve: Serve) -> None:
    """Two seconds of quick and slow, large and streamed answers, pipelines, bodies, and clients that
    disconnect.

    Each answer belongs to its request, the app is called once for each (at most once where the client left),
    all connections are closed in the end, and the numbers agree.
    """
    calls: list[str] = []

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        target = environ["PATH_INFO"]
        calls.append(target)
        environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        if target.startswith("/slow"):
            threading.Event().wait(0.005)
        if target.startswith("/large"):
            return [target.encode() + b"." * 500_000]
        if target.startswith("/parts"):
            return (part for part in (target.encode(), b".", b"." * 1000))
        return [target.encode()]

    rig = serve(app, threads=4, access=True)
    end = time.monotonic() + 2.0
    visitors = [Visitor(rig, number, end) for number in range(6)]
    for visitor in visitors:
        visitor.thread.start()
    for visitor in visitors:
        visitor.thread.join(2 * PATIENCE)
    rig.engine.drain()
    assert rig.ended()
    assert [visitor.wrong for visitor in visitors] == [[]] * 6
    count = Counter(calls)
    answered = [target for visitor in visitors for target in visitor.answered]
    abandoned = {target for visitor in visitors for target in visitor.abandoned}
    assert len(answered) > 100
    assert all(count.pop(target) == 1 for target in answered)
    assert set(count) <= abandoned
    assert all(number == 1 for number in count.values())
    counts = rig.counts()
    assert counts.opened == counts.closed
    assert counts.requests == len(calls) == len(rig.access_log())
    assert counts.errors == 0
    assert rig.log() == ""
