"""What any RequestRunner must do: one suite that runs with each implementation.

An implementation is made with WsgiRunner's arguments. The connection is one end of a pair of sockets, the
client's data is already received, and the calling thread is the one that serves.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.phase import CLOSED, LINGERING, OPEN
from ostler.workers.queueing import QueueTimes
from ostler.workers.request_runner import RequestRunner
from ostler.workers.soft_interrupt import LONG_REQUEST_NS
from ostler.workers.wsgi_runner import WsgiRunner
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import Exchange
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker
from tests.unit.workers.pieces import GET, PEER, Pieces, hello, received

Start = Callable[..., Any]


def python_runner(*arguments: Any) -> RequestRunner:
    """WsgiRunner without the C extension."""
    runner = WsgiRunner(*arguments)
    runner._ordinary = None
    return runner


IMPLEMENTATIONS: dict[str, Callable[..., RequestRunner]] = {"wsgi": WsgiRunner, "python": python_runner}
LARGE = 8 << 20
"""More than the kernel keeps between two sockets."""


class Bench:
    """One implementation, and a connection for it.

    Attributes:
        ended: what `SoftInterrupts.end` was called with.
    """

    def __init__(self, make: Callable[..., RequestRunner], folder: Path, app: Any, **options: Any) -> None:
        turn = options.pop("turn", 0)
        self.pieces = Pieces(folder, app, **options)
        self.slot = self.pieces.slot
        self.ended: list[int] = []
        self.at_end: Callable[[], object] = lambda: None
        parts = self.pieces.parts
        soft_interrupts: Any = SimpleNamespace(end=self._end, extend=self.pieces.soft_interrupts.extend)
        access = self.pieces.context.access
        self.runner = make(
            self.pieces.context,
            parts.table,
            parts.responder,
            QueueTimes(parts.reactor, self.pieces.context.settings.queue_timeout > 0),
            parts.date,
            soft_interrupts,
            access.flush if access is not None else lambda: None,
            False,
            turn,
        )
        self.connection, self.client = self.pieces.connect()

    def _end(self, started: int) -> None:
        self.ended.append(started)
        self.at_end()

    def run(self, data: bytes = GET, prompt_until: int = 1 << 62) -> bytes:
        """Let it serve the client's data; returns what the client has received afterwards."""
        self.client.setblocking(True)
        self.client.sendall(data)
        assert self.pieces.receive(self.connection)
        self.runner.run(self.connection, self.slot, prompt_until)
        return received(self.client)


Make = Callable[..., Bench]


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Bench] = []

    def make(app: Any = hello, **options: Any) -> Bench:
        made.append(Bench(IMPLEMENTATIONS[request.param], tmp_path, app, **options))
        return made[-1]

    yield make
    for each in made:
        each.pieces.__exit__(None, None, None)


def get(target: str, *lines: str) -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", "Host: x", *lines, "", "")).encode()


# -- one request -----------------------------------------------------------------------------------------


def test_an_answer(bench: Make) -> None:
    """It is sent and counted; the connection stays open and belongs to the caller."""
    it = bench()
    before = time.monotonic_ns()
    answer = it.run(get("/path"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: ostler\r\nDate: ")
    assert answer.endswith(b"\r\n\r\n/path")
    connection = it.connection
    assert (connection.phase, connection.is_idle) == (OPEN, True)
    assert before <= connection.answered_at == connection.idle_since <= time.monotonic_ns()
    counts = it.pieces.counts()
    assert (counts.statuses[2], counts.requests, sum(counts.histogram)) == (1, 1, 1)
    assert (counts.bytes_sent, sum(counts.queued)) == (5, 0)
    assert it.slot.started == 0
    assert it.ended == []
    assert not it.runner.had_long_request
    assert it.run(get("/again")).endswith(b"/again")


def test_the_environ(bench: Make) -> None:
    """The keys of PEP 3333, from the request and the connection; a new dict for each request."""
    seen: list[Environ] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        seen.append(environ)
        environ["mine"] = len(seen)
        return hello(environ, start_response)

    it = bench(app)
    it.run(get("/a%20b?c=d", "X-Y: z"))
    it.run(b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
    first, second = seen
    assert (first["REQUEST_METHOD"], first["PATH_INFO"], first["QUERY_STRING"]) == ("GET", "/a b", "c=d")
    assert (first["REMOTE_ADDR"], first["REMOTE_PORT"]) == (PEER[0], str(PEER[1]))
    assert (first["HTTP_X_Y"], first["HTTP_HOST"], first["wsgi.multithread"]) == ("z", "x", False)
    assert (second["REQUEST_METHOD"], second["CONTENT_LENGTH"], "HTTP_X_Y" in second) == ("POST", "4", False)
    assert [environ["mine"] for environ in seen] == [1, 2]


def test_the_request_is_shown_while_it_is_in_the_app(bench: Make) -> None:
    """With its method, its path without the query, and its start; it can ask for more time."""
    seen: list[Any] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        environ["ostler.extend_deadline"](100)
        seen.extend(it.pieces.scoreboard.in_flight(it.pieces.cell))
        return hello(environ, start_response)

    it = bench(app)
    before = time.monotonic_ns()
    it.run(get("/path?secret"))
    (flight,) = seen
    assert (flight.method, flight.path) == ("GET", "/path")
    assert before <= flight.started_ns <= time.monotonic_ns()
    assert flight.extended_until > time.monotonic() + 50
    assert it.pieces.scoreboard.in_flight(it.pieces.cell) == []


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(1)])
def test_an_app_that_fails(bench: Make, error: BaseException) -> None:
    """500, counted once and with its traceback in the log;
    the client receives it before the connection ends.
    """

    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise error

    it = bench(app)
    assert it.run().startswith(b"HTTP/1.1 500 ")
    assert it.connection.phase is LINGERING
    assert it.pieces.counts().statuses[5] == it.pieces.counts().requests == 1
    assert '"event": "request_failed"' in it.pieces.log()
    assert it.slot.started == 0


def test_the_access_log_and_the_quota(bench: Make) -> None:
    """A line for each answer, and one call when the quota is used up."""
    it = bench(access=True, quota=2)
    for target in ("/a", "/b", "/c"):
        it.run(get(target))
    assert it.pieces.access_log() == [f"GET {target} HTTP/1.1 200 2" for target in ("/a", "/b", "/c")]
    assert it.pieces.quotas == [2]


# -- several requests ------------------------------------------------------------------------------------


def test_pipelined_requests(bench: Make) -> None:
    """All are answered, in order, each counted."""
    it = bench()
    answers = it.run(b"".join(get(f"/{number}") for number in range(20)))
    bodies = [part.rsplit(b"\r\n\r\n", 1)[-1] for part in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"/%d" % number for number in range(20)]
    assert it.pieces.counts().requests == 20


def test_a_turn_ends(bench: Make) -> None:
    """After a request that took longer than the turn the others are left for a later call."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        time.sleep(0.002)
        return hello(environ, start_response)

    it = bench(app, turn=1_000_000)
    answers = it.run(get("/1") + get("/2") + get("/3"))
    assert answers.endswith(b"/1")
    left = it.connection.parser.requests
    assert [request.target for request in left] == [b"/2", b"/3"]
    assert it.connection.phase is OPEN
    it.runner.run(it.connection, it.slot, 1 << 62)
    assert received(it.client).endswith(b"/2")


def test_what_is_wrong_behind_a_request(bench: Make) -> None:
    """It is refused after the request before it was answered."""
    it = bench(access=True)
    answers = it.run(get("/good") + b"nonsense\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 200 OK")
    assert answers.count(b"HTTP/1.1 400 Bad Request") == 1
    assert it.connection.phase is LINGERING
    assert it.pieces.counts().statuses[2:5] == [1, 0, 1]


def test_a_client_that_waits_behind_a_request(bench: Make) -> None:
    """`100 Continue` for its next request is sent after the answer to the one before."""
    it = bench()
    answers = it.run(
        get("/first") + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert answers.endswith(b"/firstHTTP/1.1 100 Continue\r\n\r\n")
    assert it.connection.phase is OPEN


# -- the end of connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [get("/", "Connection: close"), b"GET / HTTP/1.0\r\n\r\n"])
def test_a_client_that_asks_for_the_end(bench: Make, data: bytes) -> None:
    """The connection is closed immediately after the answer; data after the request is not answered."""
    it = bench()
    answers = it.run(data + GET)
    assert answers.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n" in answers
    assert it.connection.phase is CLOSED
    assert it.pieces.counts().closed == 1
    assert it.pieces.parts.table.open == {}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_does_not_expect_the_end(bench: Make, at_once: bool) -> None:
    """Without keep-alive, or while the worker drains, the answer has `Connection: close`.
    Further bytes cause no reset.
    """
    it = bench(keepalive=0.0 if at_once else 5.0)
    if not at_once:
        it.run()
        it.runner.keep_connections = False
    assert b"\r\nConnection: close\r\n" in it.run()
    assert it.connection.phase is LINGERING


def test_a_client_that_takes_nothing(bench: Make) -> None:
    """Unsent output is left, and so are its other requests; the call does not wait for it."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(LARGE))])
        return [b"x" * LARGE]

    it = bench(app)
    it.client.sendall(GET * 2)
    assert it.pieces.receive(it.connection)
    it.runner.run(it.connection, it.slot, 1 << 62)
    assert it.connection.output
    assert len(it.connection.parser.requests) == 1
    assert it.connection.phase is OPEN
    assert it.pieces.counts().requests == 1
    assert it.pieces.counts().bytes_sent == LARGE


def test_a_client_that_leaves_in_the_middle(bench: Make) -> None:
    """Its answer counts as one that was not given whole, in counts and access log."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"some"

    it = bench(app, access=True)
    it.client.sendall(GET)
    assert it.pieces.receive(it.connection)
    it.client.close()
    it.runner.run(it.connection, it.slot, 1 << 62)
    assert it.connection.phase is CLOSED
    assert it.pieces.counts().statuses[4] == it.pieces.counts().requests == 1
    assert it.pieces.access_log()[0].startswith("GET / HTTP/1.1 499 ")


def test_a_file_counts_as_far_as_it_was_sent(bench: Make, tmp_path: Path) -> None:
    """The rest is recorded on the connection, and counted when it was sent."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(LARGE)

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [("Content-Length", str(LARGE))])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    it = bench(app)
    it.client.sendall(GET)
    assert it.pieces.receive(it.connection)
    it.runner.run(it.connection, it.slot, 1 << 62)
    sent, left = it.pieces.counts().bytes_sent, it.connection.unconfirmed
    assert 0 < left < LARGE
    assert sent + left == LARGE


def test_a_client_that_has_gone(bench: Make) -> None:
    """It disconnects while the app reads a body: 499 in counts and access log, and no error of the app."""
    it = bench(stream_request=True, access=True)
    it.client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhe")
    assert it.pieces.receive(it.connection)
    it.client.close()
    it.runner.run(it.connection, it.slot, 1 << 62)
    assert it.connection.phase is CLOSED
    assert it.pieces.counts().statuses[4] == it.pieces.counts().requests == 1
    assert it.pieces.access_log() == ["POST / HTTP/1.1 499 0"]
    assert it.pieces.log() == ""


def test_a_body_that_turns_out_wrong(bench: Make) -> None:
    """The body becomes malformed while the app reads it: one answer with the right status, counted once."""
    it = bench(stream_request=True)
    answer = it.run(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\nnonsense\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert it.pieces.counts().statuses[4] == it.pieces.counts().requests == 1
    assert it.connection.phase is LINGERING


# -- deadlines -------------------------------------------------------------------------------------------


def test_a_long_request(bench: Make) -> None:
    """It is recorded, and a pending interruption is taken back before the call continues."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        started.append(it.slot.started)
        time.sleep(1.5 * LONG_REQUEST_NS / 1e9)
        return hello(environ, start_response)

    started: list[int] = []
    it = bench(app)
    it.at_end = lambda: started.append(it.slot.started)
    assert it.run().startswith(b"HTTP/1.1 200 OK")
    assert it.runner.had_long_request
    assert it.ended == started[:1]
    assert started[1] == 0, "the slot shows nothing any more by then"


def test_a_request_that_is_ended(bench: Make) -> None:
    """DeadlineExceeded in the app: 504, counted once."""

    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise DeadlineExceeded

    it = bench(app)
    assert it.run().startswith(b"HTTP/1.1 504 ")
    assert it.pieces.counts().statuses[5] == it.pieces.counts().requests == 1


class Interrupted(RequestSlot):
    """A slot during whose method `moment` a DeadlineExceeded arrives, once,
    after the method has done its work.
    """

    moment = ""

    def begin(self, method: str, target: bytes, now: int) -> None:
        super().begin(method, target, now)
        self._arrive("begin")

    def leave_app(self) -> None:
        super().leave_app()
        self._arrive("leave_app")

    def _arrive(self, method: str) -> None:
        if method == Interrupted.moment:
            Interrupted.moment = ""
            raise DeadlineExceeded


@pytest.mark.parametrize("moment", ["begin", "leave_app", "end"])
def test_an_exception_at_any_moment(bench: Make, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Before the app, after its answer, or at the end: counted once; the connection ends."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if environ["PATH_INFO"] == "/long":
            time.sleep(1.5 * LONG_REQUEST_NS / 1e9)
        return hello(environ, start_response)

    def arrive() -> None:
        raise DeadlineExceeded

    it = bench(app)
    plain = it.slot
    own = Interrupted(None, 0, plain._words, plain._text, plain.counts)
    monkeypatch.setattr(Interrupted, "moment", moment)
    if moment == "end":
        it.at_end = arrive
    it.client.sendall(get("/long"))
    assert it.pieces.receive(it.connection)
    it.runner.run(it.connection, own, 1 << 62)
    assert it.connection.phase is CLOSED
    assert it.pieces.counts().requests == 1
    assert it.pieces.counts().statuses[5 if moment == "begin" else 2] == 1
    assert own.started == 0
    assert it.pieces.log() == ""
    it.connection, it.client = it.pieces.connect()
    assert it.run(get("/next")).endswith(b"/next")


# -- what else may happen --------------------------------------------------------------------------------


def test_the_worker_is_to_quit(bench: Make) -> None:
    """QuitWorker is raised to the caller."""

    def app(_environ: Environ, _start_response: Start) -> list[bytes]:
        raise QuitWorker

    with pytest.raises(QuitWorker):
        bench(app).run()


def test_a_defect_of_ours(bench: Make) -> None:
    """An internal error ends the connection, and is in the log; the slot is free."""

    class Broken(Exchange):
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("a defect")

    it = bench(exchange=Broken)
    it.run()
    assert it.connection.phase is CLOSED
    assert "a defect" in it.pieces.log()
    assert it.slot.started == 0
    assert it.pieces.counts().closed == 1


def test_a_request_that_has_waited(bench: Make) -> None:
    """Its wait is counted; it is answered nevertheless."""
    it = bench()
    it.client.sendall(GET)
    assert it.pieces.receive(it.connection)
    time.sleep(0.01)  # what is measured is time
    it.runner.run(it.connection, it.slot, 0)
    assert received(it.client).startswith(b"HTTP/1.1 200 OK")
    assert sum(it.pieces.counts().queued) == 1


def test_a_request_that_has_waited_too_long(bench: Make) -> None:
    """503 without calling the app; it has spent no time there; the connection stays open."""
    called: list[Environ] = []
    it = bench(lambda environ, _start: called.append(environ) or [], queue_timeout=0.005, access=True)
    it.client.sendall(GET)
    assert it.pieces.receive(it.connection)
    time.sleep(0.01)  # what is measured is time
    it.runner.run(it.connection, it.slot, 0)
    assert received(it.client).startswith(b"HTTP/1.1 503 ")
    counts = it.pieces.counts()
    assert (counts.statuses[5], sum(counts.histogram), sum(counts.queued)) == (1, 0, 1)
    assert called == []
    assert it.connection.phase is OPEN
    assert it.pieces.access_log()[0].startswith("GET / HTTP/1.1 503 ")


def test_the_average(tmp_path: Path) -> None:
    """With several threads the average time in the app follows the durations of requests."""
    it = Bench(WsgiRunner, tmp_path, hello, threads=4)
    with it.pieces:
        for _ in range(50):
            it.run()
        assert 0 < it.runner.average < 2_000_000


def test_a_reset_behind_the_answer(bench: Make) -> None:
    """The client has reset the connection: it is closed, and the answer is counted."""
    it = bench()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, peer = listener.accept()
    ours.setblocking(False)
    connection = it.pieces.parts.factory.make(ours, "", peer)
    assert it.pieces.parts.table.add(connection, "", it.slot)
    it.pieces.parts.reactor.watch(connection)
    client.sendall(GET)
    assert it.pieces.receive(connection)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    it.runner.run(connection, it.slot, 1 << 62)
    assert connection.phase is CLOSED
    assert it.pieces.counts().requests == 1
    assert it.pieces.log() == ""
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(connection.fd)
