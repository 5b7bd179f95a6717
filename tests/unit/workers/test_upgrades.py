"""Requests that offer an upgrade, and apps that take their connections."""

import gc
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ostler.http1.frames import GOING_AWAY, SERVICE_RESTART, close_frame
from ostler.workers.app_socket import AppSocket
from ostler.workers.connection import Connection
from ostler.workers.phase import CLOSED, LINGERING, OPEN, UPGRADED
from ostler.workers.readiness import own_descriptors
from ostler.workers.system_calls import wait_in_app
from ostler.wsgi.environ import Environ
from tests.kit.waiting import until
from tests.unit.workers.pieces import GET, SECOND, Pieces, hello, received

OFFER = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
FRAME = b"\x81\x05hello"

App = Callable[[Environ, Callable[..., Any]], Any]


class Bench:
    """Pieces, one connection, and what the app has done with its socket."""

    def __init__(self, folder: Path, app: App, **options: Any) -> None:
        self.pieces = Pieces(folder, app, access=True, **options)
        self.connection, self.client = self.pieces.connect()

    def run(self, data: bytes) -> bytes:
        """Let it serve what the client sends; returns what the client has received afterwards."""
        self.client.setblocking(True)
        self.client.sendall(data)
        assert self.pieces.receive(self.connection)
        self.pieces.parts.runner.run(self.connection, self.pieces.slot, 1 << 62)
        return received(self.client)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:

        def make(app: App, **options: Any) -> Bench:
            made = Bench(tmp_path, app, **options)
            stack.enter_context(made.pieces)
            return made

        yield make


Make = Callable[..., Bench]


def taking(behave: Callable[[Any], Any]) -> App:
    """An app that answers 101 by the socket, and ends as `behave` does with it."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        sock = environ["gunicorn.socket"]
        sock.sendall(SWITCH)
        return behave(sock)

    return app


# -- who gets a socket, and who takes it -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "offered"),
    [
        (OFFER, True),
        (OFFER.replace(b"websocket", b"h2c"), True),
        (OFFER.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"), True),
        (GET, False),
        (OFFER.replace(b"Connection: Upgrade\r\n", b""), False),
        (OFFER.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
    ],
)
def test_who_gets_a_socket(bench: Make, request_: bytes, offered: bool) -> None:
    """Only requests that offer an upgrade."""
    seen = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        seen.append("gunicorn.socket" in environ)
        return hello(environ, start_response)

    bench(app).run(request_)
    assert seen == [offered]


def test_nothing_is_left_of_an_offer(bench: Make) -> None:
    """Neither if the app leaves it alone nor if the request has waited too long for the app to be called: not
    even what only the garbage collector would find.
    """
    gc.collect()
    gc.disable()
    try:
        assert bench(hello).run(OFFER).startswith(b"HTTP/1.1 200 ")
        late = bench(hello, queue_timeout=0.005)
        late.client.sendall(OFFER)
        assert late.pieces.receive(late.connection)
        time.sleep(0.01)  # what is measured is time
        late.pieces.parts.runner.run(late.connection, late.pieces.slot, 0)
        assert received(late.client).startswith(b"HTTP/1.1 503 ")
        assert [each for each in gc.get_objects() if isinstance(each, AppSocket)] == []
    finally:
        gc.enable()


def test_a_body_that_is_still_coming(bench: Make) -> None:
    """With stream_request its bytes are the app's by `wsgi.input`, so there is no socket."""
    seen = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        seen.append("gunicorn.socket" in environ)
        start_response("200 OK", [])
        return [b""]

    head = OFFER.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")
    bench(app, stream_request=True).run(head + b"hi")
    assert seen == [False]


def test_an_offer_that_is_not_taken(bench: Make) -> None:
    """It is answered as any request, and so is what came behind it; looking at the socket takes nothing."""
    kept = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        if sock := environ.get("gunicorn.socket"):
            sock.settimeout(5)
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            assert sock.fileno() >= 0
            assert sock.recv(1, socket.MSG_PEEK) == b"G"
            kept.append(sock)
        return hello(environ, start_response)

    made = bench(app)
    answers = made.run(OFFER + GET + OFFER + GET)
    assert answers.count(b"HTTP/1.1 200 OK") == 4
    assert made.connection.phase is OPEN
    assert made.pieces.counts().statuses[2] == 4
    for sock in kept:
        assert sock.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.send(b"too late")
    assert not received(made.client)


def test_a_frame_behind_an_offer_that_is_not_taken(bench: Make) -> None:
    """It is no request: the answer comes first, then the refusal."""
    made = bench(hello)
    answers = made.run(OFFER + FRAME)
    assert answers.index(b"200 OK") < answers.index(b"400 Bad Request")
    assert made.connection.phase is LINGERING


# -- how a request ends that has taken its connection ----------------------------------------------------


def stop_iteration(_sock: Any) -> Any:
    raise StopIteration


def broken_pipe(_sock: Any) -> Any:
    raise BrokenPipeError


def of_the_socket(sock: Any) -> Any:
    sock.close()
    sock.send(b"too late")


@pytest.mark.parametrize(
    "behave",
    [
        lambda _sock: [],
        lambda _sock: (),
        lambda _sock: None,
        lambda _sock: [b"not sent to any client"],
        lambda _sock: iter([b"nor", b"this"]),
        stop_iteration,
        broken_pipe,
        of_the_socket,
    ],
)
def test_what_the_app_returns_is_not_sent(bench: Make, behave: Callable[[Any], Any]) -> None:
    """Nothing of ours follows what the app has sent; it counts as a 101 without a time, and is no failure."""
    made = bench(taking(behave))
    assert made.run(OFFER) == SWITCH
    assert made.connection.phase in (LINGERING, CLOSED)
    counts = made.pieces.counts()
    assert counts.statuses[1] == counts.requests == 1
    assert sum(counts.histogram) == 0
    assert counts.bytes_sent == len(SWITCH)
    assert made.pieces.access_log() == [f"GET /ws HTTP/1.1 101 {len(SWITCH)}"]
    assert "request_failed" not in made.pieces.log()


def test_an_answer_by_start_response_as_well(bench: Make) -> None:
    """flask-sock returns a whole response behind its websocket; its close() is called."""
    closed = []

    class Answer:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"never"])

        def close(self) -> None:
            closed.append(True)

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        environ["gunicorn.socket"].sendall(SWITCH)
        start_response("200 OK", [("Content-Length", "5")])(b"never")
        return Answer()

    made = bench(app)
    assert made.run(OFFER) == SWITCH
    assert closed == [True]
    assert made.pieces.access_log()[0].startswith("GET /ws HTTP/1.1 101")


@pytest.mark.parametrize("error", [KeyError("a bug"), FileNotFoundError(2, "a bug"), RuntimeError("a bug")])
def test_an_error_of_the_app(bench: Make, error: Exception) -> None:
    """It is logged, and the client gets nothing of it."""

    def behave(_sock: Any) -> None:
        raise error

    made = bench(taking(behave))
    assert made.run(OFFER) == SWITCH
    assert "a bug" in made.pieces.log()


def test_an_error_before_the_socket_is_used(bench: Make) -> None:
    """It is answered with a 500, also if it is StopIteration."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        raise StopIteration

    made = bench(app)
    assert made.run(OFFER).startswith(b"HTTP/1.1 500")
    assert made.pieces.counts().statuses[5] == 1


def test_an_app_that_takes_it_while_it_is_iterated(bench: Make) -> None:
    """A generator's code runs after the call has returned."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        environ["gunicorn.socket"].sendall(SWITCH)
        yield b"never"
        raise ConnectionResetError

    made = bench(app)
    assert made.run(OFFER) == SWITCH
    assert "request_failed" not in made.pieces.log()
    assert made.pieces.counts().statuses[1] == 1


def test_the_client_went_first(bench: Make) -> None:
    """Then no client is waited for: the connection is closed at once."""
    made: Bench

    def behave(sock: Any) -> list[bytes]:
        made.client.close()
        assert sock.recv(100) == b""
        return []

    made = bench(taking(behave))
    made.client.sendall(OFFER)
    assert made.pieces.receive(made.connection)
    made.pieces.parts.runner.run(made.connection, made.pieces.slot, 1 << 62)
    assert made.connection.phase is CLOSED
    assert made.pieces.counts().closed == 1


def test_the_end_of_the_connection(bench: Make) -> None:
    """The client sees the end, may still send its own close, and then it is closed."""
    made = bench(taking(lambda _sock: []))
    made.run(OFFER)
    made.client.setblocking(True)
    assert made.client.recv(1) == b""
    made.client.sendall(close_frame(1000))
    made.client.close()
    until(lambda: made.pieces.receive(made.connection) or made.connection.phase is CLOSED, "its end")
    assert not made.pieces.parts.table.upgraded
    assert made.pieces.counts().closed == 1


# -- what is shown meanwhile -----------------------------------------------------------------------------


def test_it_has_no_deadline_and_is_not_watched(bench: Make) -> None:
    """From its first use on, and not before: in the scoreboard, the table and the reactor."""
    made: Bench
    seen = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        sock = environ["gunicorn.socket"]
        table = made.pieces.parts.table
        for use in (lambda: None, lambda: sock.send(SWITCH)):
            use()
            (shown,) = made.pieces.scoreboard.in_flight(made.pieces.cell)
            deadline = shown.deadline(5.0)
            seen.append((shown.upgraded, deadline is None, made.connection.phase, len(table.upgraded)))
        assert not made.connection.watched
        made.client.sendall(FRAME)
        assert not [fd for fd, _ in made.pieces.reactor.poll(0) if fd == made.connection.fd]
        assert sock.recv(100) == FRAME
        return []

    made = bench(app)
    made.run(OFFER)
    assert seen == [(False, False, OPEN, 0), (True, True, UPGRADED, 1)]


def test_the_next_request_in_the_slot_is_an_ordinary_one(bench: Make) -> None:
    """What was written for an upgraded request is not true of the next one."""
    made = bench(taking(lambda _sock: []))
    made.run(OFFER)
    made.pieces.slot.begin("GET", b"/next", time.monotonic_ns())
    (shown,) = made.pieces.scoreboard.in_flight(made.pieces.cell)
    assert not shown.upgraded
    assert shown.deadline(5.0) is not None
    made.pieces.slot.leave_app()


def test_the_accounting_of_no_request(bench: Make) -> None:
    """Nothing is shown as upgraded where no request is."""
    made = bench(hello)
    made.pieces.slot.upgraded()
    assert made.pieces.scoreboard.in_flight(made.pieces.cell) == []


def test_they_count_twice_for_descriptors(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has two, so that fewer connections fit; `worker_connections` counts each once."""
    monkeypatch.setattr("ostler.workers.connection_table.most_connections", lambda wanted: min(wanted, 3))
    made = bench(hello, worker_connections=5)
    table = made.pieces.parts.table
    connections = [made.connection, made.pieces.connect()[0]]
    assert not table.is_full
    table.upgraded.update(connections)
    assert table.is_full


# -- the socket ------------------------------------------------------------------------------------------


class Ends:
    """An AppSocket and the client's end."""

    def __init__(self, early: bytes = b"", websocket: bool = True) -> None:
        self.ours, self.client = socket.socketpair()
        self.ours.setblocking(False)
        self.client.settimeout(15)
        self.taken: list[bool] = []
        self.sock = AppSocket(
            self.ours, False, early, lambda: self.taken.append(True), wait_in_app, websocket
        )


@pytest.fixture
def ends() -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make(**options: Any) -> Ends:
        made.append(Ends(**options))
        return made[-1]

    yield make
    for each in made:
        each.sock.end()
        each.ours.close()
        each.client.close()


def test_what_came_early_comes_first(ends: Callable[..., Ends]) -> None:
    """In any portions, with any method; then what comes now."""
    pair = ends(early=b"early")
    pair.client.sendall(b"later")
    assert pair.sock.recv(2, socket.MSG_PEEK) == b"ea"
    assert pair.sock.pending() == 5
    buffer = bytearray(3)
    assert pair.sock.recv_into(buffer) == 3
    assert bytes(buffer) == b"ear"
    assert pair.sock.recv(100) == b"ly"
    assert pair.sock.recvfrom(100) == (b"later", None)
    with pair.sock.makefile("rb") as file:
        pair.client.sendall(b"a line\nmore")
        assert file.readline() == b"a line\n"


@pytest.mark.parametrize("early", [b"", b"early"])
def test_selectors(ends: Callable[..., Ends], early: bytes) -> None:
    """They report what `recv` returns at once, and nothing else."""
    pair = ends(early=early)
    with selectors.DefaultSelector() as selector:
        selector.register(pair.sock, selectors.EVENT_READ)
        assert bool(selector.select(0)) is bool(early)
        if early:
            assert pair.sock.recv(3) == b"ear"
            assert selector.select(0)
            assert pair.sock.recv(3) == b"ly"
        assert not selector.select(0)
        pair.client.sendall(b"x")
        assert selector.select(15)
        assert pair.sock.recv(3) == b"x"
        assert not selector.select(0)
        pair.sock.end()
        assert selector.select(15), "the end wakes those that select"
        assert pair.sock.fileno() == -1


def test_timeouts(ends: Callable[..., Ends]) -> None:
    """As of sockets: None waits, 0 never does, seconds bound each call."""
    sock = ends().sock
    assert (sock.gettimeout(), sock.getblocking()) == (None, True)
    sock.setblocking(False)
    assert (sock.gettimeout(), sock.getblocking()) == (0.0, False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.settimeout(0.01)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    with pytest.raises(TimeoutError):
        sock.sendall(b"x" * 10_000_000)
    with pytest.raises(ValueError, match="out of range"):
        sock.settimeout(-1)
    with pytest.raises(BlockingIOError):
        sock.recv(1, socket.MSG_DONTWAIT)


def test_send_sends_all(ends: Callable[..., Ends]) -> None:
    """As of a socket that blocks: libraries do not look at what `send` returns."""
    pair = ends()
    data = bytes(range(256)) * 40_000
    got = bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(pair.client.recv(1 << 20))

    reader = threading.Thread(target=read)
    reader.start()
    assert pair.sock.send(data) == len(data)
    reader.join(15)
    assert bytes(got) == data
    assert pair.sock.sent == len(data)
    assert pair.sock.sendmsg([b"ab", b"c"]) == 3


@pytest.mark.parametrize(
    ("use", "takes"),
    [
        (lambda sock: sock.fileno(), False),
        (lambda sock: sock.getpeername(), False),
        (lambda sock: sock.getsockname(), False),
        (lambda sock: (sock.family, sock.type, sock.proto), False),
        (lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096), False),
        (lambda sock: sock.recv(1, socket.MSG_PEEK), False),
        (lambda sock: sock.makefile("rb").close(), False),
        (lambda sock: sock.recv(1), True),
        (lambda sock: sock.send(b"x"), True),
        (lambda sock: sock.shutdown(socket.SHUT_WR), True),
        (lambda sock: sock.dup().close(), True),
        (lambda sock: sock.close(), True),
        (lambda sock: sock.__exit__(), True),
    ],
)
def test_what_takes_the_connection(ends: Callable[..., Ends], use: Callable[[Any], Any], takes: bool) -> None:
    """Reading, writing and ending it; each only once."""
    pair = ends()
    pair.client.sendall(b"data")
    use(pair.sock)
    use(pair.sock) if not takes else None
    assert pair.taken == [True] * takes
    assert pair.sock.taken is takes


def test_close(ends: Callable[..., Ends]) -> None:
    """The client sees the end; later calls fail; files that were made of it may still be used."""
    pair = ends()
    file = pair.sock.makefile("wb")
    with pair.sock:
        pair.sock.send(b"one")
    assert pair.sock.fileno() == -1
    for call in (lambda: pair.sock.recv(1), lambda: pair.sock.send(b"x"), pair.sock.dup):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    file.close()
    pair.sock.close()
    assert pair.client.recv(10) == b"one"
    assert pair.client.recv(10) == b""


def test_a_socket_of_its_own(ends: Callable[..., Ends]) -> None:
    """`dup` and `detach`, e.g. for an asyncio loop; not if bytes would be lost by that."""
    pair = ends()
    with pair.sock.dup() as duplicate:
        assert not duplicate.getblocking()
        duplicate.send(b"by the duplicate")
        assert pair.client.recv(100) == b"by the duplicate"
    with socket.socket(fileno=pair.sock.detach()) as detached:
        detached.send(b"x")
    assert pair.client.recv(1) == b"x"
    with pytest.raises(NotImplementedError):
        ends(early=b"early").sock.dup()


@pytest.mark.parametrize("how", ["close", "end", "cut"])
def test_an_end_wakes_what_waits(ends: Callable[..., Ends], how: str) -> None:
    """A thread of the app that waits for the client returns, with nothing or an error."""
    pair = ends()
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(pair.sock.recv(10))
        except OSError as error:
            outcome.append(error.errno)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: pair.sock._waiting, "it waits")
    getattr(pair.sock, how)()
    thread.join(15)
    assert not thread.is_alive()
    assert outcome == ([b""] if how == "cut" else [9])


def test_its_descriptor_lives_as_long_as_it_is_used(ends: Callable[..., Ends]) -> None:
    """It is closed at the end, but not while a selector may have it."""
    pair = ends()
    pair.sock.send(b"x")
    pair.sock.end()
    assert pair.sock._fd is None
    exposed = ends()
    exposed.sock.send(b"x")
    fd = exposed.sock.fileno()
    exposed.sock.end()
    assert select.select([fd], [], [], 15)[0] == [fd]
    exposed.sock.close()
    assert exposed.sock._fd is None


# -- a polite end ----------------------------------------------------------------------------------------


def test_goodbye(ends: Callable[..., Ends]) -> None:
    """A close frame between two frames of the app; what the app sends afterwards is dropped."""
    pair = ends()
    pair.sock.sendall(SWITCH + FRAME)
    pair.sock.say_goodbye(GOING_AWAY)
    pair.sock.say_goodbye(GOING_AWAY)
    assert pair.sock.send(FRAME) == len(FRAME)
    assert pair.client.recv(1000) == SWITCH + FRAME + close_frame(1001)
    pair.client.sendall(b"the client's close")
    assert pair.sock.recv(100) == b"the client's close"


@pytest.mark.parametrize(
    "sent", [b"", SWITCH[:-1], SWITCH + FRAME[:3], SWITCH + close_frame(1000), b"HTTP/1.1 400 No\r\n\r\n"]
)
def test_no_goodbye(ends: Callable[..., Ends], sent: bytes) -> None:
    """Not before the handshake is done, within a frame, or behind the app's own close."""
    pair = ends()
    pair.sock.sendall(sent)
    pair.sock.say_goodbye(GOING_AWAY)
    pair.sock.sendall(b"!")
    assert pair.client.recv(1000) == sent + b"!"


def test_no_goodbye_in_other_protocols(ends: Callable[..., Ends]) -> None:
    """A close frame means something only in a websocket."""
    pair = ends(websocket=False)
    pair.sock.sendall(SWITCH)
    pair.sock.say_goodbye(GOING_AWAY)
    assert pair.client.recv(1000) == SWITCH


def test_no_goodbye_while_a_frame_is_sent(ends: Callable[..., Ends]) -> None:
    """The app waits for a client that does not read: nothing is put between, and `cut` ends it."""
    pair = ends()
    pair.sock.sendall(SWITCH)
    outcome: list[object] = []

    def send() -> None:
        try:
            pair.sock.sendall(b"\x82\x7f" + (50 << 20).to_bytes(8, "big") + bytes(50 << 20))
        except OSError as error:
            outcome.append(type(error))

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: pair.sock._waiting, "the client's buffer is full")
    pair.sock.say_goodbye(GOING_AWAY)
    pair.sock.cut()
    thread.join(15)
    assert outcome == [BrokenPipeError]


# -- draining --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hand_over", "code"), [(False, GOING_AWAY), (True, SERVICE_RESTART)])
def test_draining(tmp_path: Path, hand_over: bool, code: int) -> None:
    """Not before the time is nearly over; then politely, then by force; one line of log says so."""
    made: Bench
    steps = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        sock = environ["gunicorn.socket"]
        sock.sendall(SWITCH)
        parts, slot = made.pieces.parts, made.pieces.slot
        parts.drain._can_hand_off = True
        parts.drain.ask(hand_over=hand_over, seconds=10)
        parts.sweeper.sweep(made.pieces.reactor.read_clock(), slot)
        assert parts.drain.deadline is not None
        for left in (9.0, 1.1, 0.9, 0.4):
            parts.sweeper.sweep(parts.drain.deadline - int(left * SECOND), slot)
            steps.append((left, received(made.client)))
        assert sock.recv(10) == b"", "it was cut"
        return []

    made = Bench(tmp_path, app)
    with made.pieces:
        made.run(OFFER)
        assert steps == [(9.0, SWITCH), (1.1, b""), (0.9, close_frame(code)), (0.4, b"")]
        assert made.pieces.log().count("upgraded_closed") == 1


@pytest.mark.parametrize("more", [b"", FRAME], ids=["plain", "buffered"])
def test_descriptors_that_a_fork_closes(bench: Make, more: bytes) -> None:
    """What a selector waits for is known from `fileno` on, also if the connection is not taken, and until the
    socket is closed."""
    found: list[tuple[int, list[int]]] = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        sock = environ["gunicorn.socket"]
        found.append((sock.fileno(), own_descriptors()))
        sock.close()
        found.append((sock.fileno(), own_descriptors()))
        return []

    bench(app).run(OFFER + more)
    (fd, during), after = found
    assert fd in during
    assert len(during) == (3 if more else 1), "with the epoll, and what wakes it"
    assert after == (-1, [])


def test_nothing_refers_to_a_connection_that_has_ended(bench: Make) -> None:
    """No cycle is left of connection and socket."""
    kept: list[AppSocket] = []

    def behave(sock: Any) -> list[bytes]:
        kept.append(sock)
        return []

    made = bench(taking(behave))
    made.run(OFFER)
    connection: Connection = made.connection
    made.pieces.parts.table.close(connection, made.pieces.slot)
    assert connection.app_socket is None
    assert not hasattr(kept[0]._take, "__self__")
