"""The request runner of the C extension sends, counts and logs what the Python code does."""

import ctypes
import functools
import gc
import json
import re
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ostler import native
from ostler.workers.connection import Connection
from ostler.workers.phase import CLOSED, OPEN
from ostler.workers.soft_interrupt import LONG_REQUEST_NS
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import ClientGone, Exchange
from ostler.wsgi.interruption import DeadlineExceeded
from tests.kit.tiers import thorough
from tests.unit.workers.pieces import Pieces, hello, received

pytestmark = pytest.mark.skipif(native.module is None, reason="there is no C extension")

Start = Callable[..., Any]


class Text(str):
    """A str that is none to code which takes its bytes."""

    __slots__ = ()


class Data(bytes):
    """The same for bytes."""


class Parts(list[Any]):
    """The same for a list."""


class Header(NamedTuple):
    """The same for a tuple."""

    name: Any
    value: Any


GET = b"GET /path?query HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
METHODS = [b"GET", b"HEAD", b"DELETE", b"OPTIONS"]
STATUSES: list[Any] = [
    *("200 OK", "204 No Content", "304 Not Modified", "404 Not Found", "299 ", "999 x\ty", "600 \x7f", "200"),
    *("100 Continue", "2000 OK", "200 \xe9", "200 OK\r\nX: y", "\xb200 OK", "", 200, None),
    *(Text("200 OK"), Text("204 No Content")),
]
VALUES: list[Any] = [
    "1",
    "0",
    "5",
    "05",
    "-1",
    "x",
    "a, b",
    "\xe9",
    "\u20ac",
    "a\r\nb",
    "close",
    "",
    " 5",
    "5" * 19,
    Text("5"),
    5,
]
NAMES: list[Any] = [
    *(
        "Content-Type",
        "content-length",
        "Content-Length",
        "Set-Cookie",
        "Connection",
        "Date",
        "Server",
        "Upgrade",
    ),
    *(
        "Transfer-Encoding",
        "X-y_z.~",
        "bad name",
        "",
        "keep-alive",
        "\xe9",
        "Proxy-Authenticate",
        "Trailers",
        7,
    ),
    Text("Content-Length"),
]
BODIES: list[Any] = [
    *(b"", b"1", b"hello", b"x" * 70_000, "text", None, bytearray(b"bytes"), 3),
    *(Data(b"bytes"), Data(), (b"hello",), (), memoryview(b"bytes")),
]
KINDS = [
    *("list", "tuple", "generator", "closing", "none", "bytes"),
    *("parts", "iterator", "own", "no close", "no iterator", "bad close"),
]
ERRORS = [ValueError, SystemExit, ClientGone, DeadlineExceeded, StopIteration]


@dataclass
class Behaviour:
    """What an app does with a request.

    Attributes:
        start: the arguments of its calls of start_response, in their order.
        late: they are made when the answer is iterated, not before.
        written: passed to write().
        parts: of the answer.
        kind: how the parts are given, one of KINDS.
        error: raised at `error_at`: in the app, while the parts are iterated, or by close().
        error_at: "app", "parts" or "close".
        handled: start_response is called once more, with exc_info.
        closing: passed to write() in close().
    """

    start: list[tuple[Any, ...]] = field(default_factory=lambda: [("200 OK", [("Content-Length", "5")])])
    late: bool = False
    written: list[Any] = field(default_factory=list)
    parts: list[Any] = field(default_factory=lambda: [b"hello"])
    kind: str = "list"
    error: type[BaseException] | None = None
    error_at: str = "app"
    handled: bool = False
    closing: list[Any] = field(default_factory=list)
    closed: int = 0
    write: Any = None

    def app(self, _environ: Environ, start_response: Start) -> Any:
        if not self.late:
            self._start(start_response)
        if self.error is not None and self.error_at == "app":
            raise self.error
        match self.kind:
            case "list":
                return list(self.parts)
            case "tuple":
                return tuple(self.parts)
            case "generator":
                return self.generate(start_response)
            case "none":
                return None
            case "bytes":
                return b"".join(part for part in self.parts if isinstance(part, bytes))
            case "parts":
                return Parts(self.parts)
            case "iterator":
                return iter(self.parts)
        return ANSWERS[self.kind](self, start_response)

    def generate(self, start_response: Start) -> Iterator[Any]:
        if self.late:
            self._start(start_response)
        yield from self.parts
        if self.error is not None and self.error_at == "parts":
            raise self.error

    def _start(self, start_response: Start) -> None:
        for arguments in self.start:
            self.write = start_response(*arguments)
            for data in self.written:
                self.write(data)
        if self.handled:
            try:
                raise KeyError("handled")
            except KeyError as error:
                start_response("503 Sorry", [("X-Y", "z")], (KeyError, error, error.__traceback__))


class Closing:
    """What an app returns, with close()."""

    def __init__(self, behaviour: Behaviour, start_response: Start) -> None:
        self._behaviour = behaviour
        self._start_response = start_response
        self._generator = behaviour.generate(start_response)

    def __iter__(self) -> Iterator[Any]:
        return self._generator

    def close(self) -> None:
        self._behaviour.closed += 1
        for data in self._behaviour.closing if self._behaviour.write is not None else []:
            self._behaviour.write(data)
        if self._behaviour.error is not None and self._behaviour.error_at == "close":
            raise self._behaviour.error


class Own(Closing):
    """An iterator itself."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return next(self._generator)


class NoClose(Closing):
    close = None  # type: ignore[assignment]


class NoIterator(Closing):
    def __iter__(self) -> Any:
        if self._behaviour.error is not None:
            raise self._behaviour.error
        return self


class BadClose(Closing):
    @property
    def close(self) -> Any:  # type: ignore[override]
        raise self._behaviour.error or AttributeError


ANSWERS: dict[str, Callable[[Behaviour, Start], Closing]] = {
    "closing": Closing,
    "own": Own,
    "no close": NoClose,
    "no iterator": NoIterator,
    "bad close": BadClose,
}


headers = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)),
        st.just(("Content-Length", "5")),
        st.sampled_from([["X-List", "y"], Header("X-Tuple", "y"), Header("Content-Length", "5")]),
        st.sampled_from([(), ("a", "b", "c"), "ab", None]),
    ),
    max_size=4,
)
starts = st.one_of(
    st.just(("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])),
    st.just(("200 OK", [("Content-Type", "text/plain")])),
    st.tuples(st.sampled_from(STATUSES), headers),
    st.tuples(st.just("200 OK"), headers.map(tuple)),
)
behaviours = st.builds(
    Behaviour,
    start=st.lists(starts, max_size=2),
    late=st.booleans(),
    written=st.lists(st.sampled_from(BODIES), max_size=1),
    parts=st.lists(st.sampled_from(BODIES), max_size=3),
    kind=st.sampled_from(KINDS),
    error=st.one_of(st.none(), st.sampled_from(ERRORS)),
    error_at=st.sampled_from(["app", "parts", "close"]),
    handled=st.booleans(),
    closing=st.lists(st.sampled_from(BODIES), max_size=1),
)


class Bench:
    """A worker's parts, with the C extension's runner or without."""

    def __init__(self, folder: Path, app: Any, by_c: bool, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.pieces = Pieces(folder, app, **options)
        self.runner: Any = self.pieces.parts.runner
        self._logged = 0
        assert self.runner._ordinary is not None
        if not by_c:
            self.runner._ordinary = None

    def ask(self, data: bytes) -> dict[str, Any]:
        """All that is seen of one request on a new connection."""
        connection, client = self.pieces.open()
        before = self._counted()
        with client:
            answer = self.serve(connection, client, data)
            seen = {
                "answer": re.sub(rb"Date: [^\r]*", b"Date: ", answer),
                "phase": connection.phase,
                "output": bool(connection.output),
                "started": self.pieces.slot.started,
                "unfinished": self.pieces.slot.unfinished,
                "counts": [after - number for after, number in zip(self._counted(), before, strict=True)],
            }
            if connection.phase is not CLOSED:
                self.pieces.parts.table.close(connection, self.pieces.slot)
        return seen

    def ask_often(self, number: int) -> None:
        """Requests on one connection, or on as many as are needed because answers end them."""
        connection, client = self.pieces.open()
        for _ in range(number):
            self.serve(connection, client, GET)
            if connection.phase is not OPEN:
                if connection.phase is not CLOSED:
                    self.pieces.parts.table.close(connection, self.pieces.slot)
                client.close()
                connection, client = self.pieces.open()
        self.pieces.parts.table.close(connection, self.pieces.slot)
        client.close()

    def _counted(self) -> list[int]:
        counts = self.pieces.counts()
        return [*counts.statuses, counts.requests, counts.bytes_sent, counts.closed]

    def logged(self) -> list[Any]:
        """Events that were logged since this was last called, with the last lines of their tracebacks."""
        lines = self.pieces.log().splitlines()
        events = [json.loads(line) for line in lines[self._logged :]]
        self._logged = len(lines)
        return [(event["event"], event.get("traceback", "").splitlines()[-1:]) for event in events]

    def serve(self, connection: Connection, client: socket.socket, data: bytes) -> bytes:
        client.setblocking(True)
        client.sendall(data)
        assert self.pieces.receive(connection)
        self.runner.run(connection, self.pieces.slot, 1 << 62)
        return received(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.pieces.__exit__(None, None, None)


class Pair:
    """The same app by both runners."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.app: Any = hello
        self.both = [
            Bench(
                folder / name, lambda environ, start: self.app(environ, start), by_c, access=True, **options
            )
            for name, by_c in (("c", True), ("python", False))
        ]

    def check(self, behaviour: Behaviour, method: bytes = b"GET") -> None:
        by_c, by_python = self.served(behaviour, GET.replace(b"GET", method, 1))
        assert by_c == by_python

    def served(self, behaviour: Behaviour, data: bytes) -> list[dict[str, Any]]:
        """All that is seen of one request, by each of both."""
        seen = []
        for bench in self.both:
            behaviour.closed, behaviour.write = 0, None
            self.app = behaviour.app
            found = bench.ask(data)
            more = {"access": bench.pieces.access_log()[-1:], "log": bench.logged()}
            seen.append(found | {"closed": behaviour.closed} | more)
        return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for bench in self.both:
            bench.__exit__()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path) as pair:
        yield pair


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(behaviour=behaviours, method=st.sampled_from(METHODS))
@example(behaviour=Behaviour(), method=b"GET")
@example(behaviour=Behaviour(kind="closing", error=ValueError, error_at="close"), method=b"GET")
@example(behaviour=Behaviour(kind="closing", error=DeadlineExceeded, error_at="parts"), method=b"GET")
@example(behaviour=Behaviour(kind="generator", late=True), method=b"GET")
@example(behaviour=Behaviour(parts=[b"", b"hello", b"more"], kind="closing"), method=b"GET")
@example(behaviour=Behaviour(written=[(b"hello",)]), method=b"GET")
@example(behaviour=Behaviour(kind="closing", closing=[b""]), method=b"GET")
@example(behaviour=Behaviour(kind="closing", closing=[b"more"]), method=b"GET")
@example(behaviour=Behaviour(kind="no iterator", error=StopIteration, error_at="parts"), method=b"GET")
@example(behaviour=Behaviour(kind="bad close", error=ValueError, error_at="close"), method=b"GET")
def test_any_app(pair: Pair, behaviour: Behaviour, method: bytes) -> None:
    """Answer, counts, access log, calls of close(), and whether the connection goes on."""
    pair.check(behaviour, method)


def set_exception() -> Callable[[], object]:
    """What lets DeadlineExceeded be raised in this thread when it runs Python code again."""
    ident = ctypes.c_ulong(threading.get_ident())
    return functools.partial(
        ctypes.pythonapi.PyThreadState_SetAsyncExc, ident, ctypes.py_object(DeadlineExceeded)
    )


class LateClose:
    """A long answer, with a close() in which no Python code runs."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        time.sleep(1.5 * LONG_REQUEST_NS / 1e9)
        return iter([b"hello"])


def test_an_exception_for_a_long_request(tmp_path: Path) -> None:
    """It comes when the answer is sent: that is counted once, and the connection ends."""

    def app(_environ: Environ, start_response: Start) -> LateClose:
        start_response("200 OK", [("Content-Length", "5")])
        return LateClose(set_exception())

    with Bench(tmp_path, app, True) as it:
        seen = it.ask(GET)
        assert seen["answer"].endswith(b"hello")
        assert (seen["phase"], seen["started"], seen["unfinished"]) == (CLOSED, 0, None)
        counts = it.pieces.counts()
        assert (counts.statuses[2], counts.requests, counts.bytes_sent) == (1, 1, 5)
        assert it.pieces.log() == ""


@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "closing"])
def test_it_does_all(tmp_path: Path, kind: str) -> None:
    """Of lists, and of iterables of one part with its length; the slot shows the request meanwhile."""
    shown: list[Any] = []
    behaviour = Behaviour(kind=kind)
    left: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Any:
        shown.extend((each.method, each.path) for each in it.pieces.scoreboard.in_flight(it.pieces.cell))
        return behaviour.app(environ, start_response)

    with Bench(tmp_path, app, True, access=True) as it:
        run = it.runner._run
        it.runner._run = lambda *arguments: left.append(run(*arguments))
        for number in range(1, 1000):
            assert it.ask(GET)["answer"].endswith(b"hello")
            if len(left) < number:
                break  # Python goes on with those during which this process had no CPU for some time
        assert len(left) < number
        assert it.pieces.access_log() == ["GET /path?query HTTP/1.1 200 5"] * number
    assert shown == [("GET", "/path")] * number


@pytest.mark.parametrize("kind", ["list", "closing"])
@pytest.mark.parametrize("by_c", [True, False])
def test_a_slow_client(tmp_path: Path, by_c: bool, kind: str) -> None:
    """What it does not take at once is kept, and is sent later; the answer counts."""
    body = bytes(range(256)) * 256
    behaviour = Behaviour([("200 OK", [("Content-Length", str(len(body)))])], parts=[body], kind=kind)
    with Bench(tmp_path, behaviour.app, by_c) as it:
        connection, client = it.pieces.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        answer = it.serve(connection, client, GET)
        assert connection.output
        assert it.pieces.counts().bytes_sent == len(body)
        while not connection.flush():
            answer += received(client)
        answer += received(client)
        assert answer.endswith(b"\r\n\r\n" + body)
        assert it.serve(connection, client, GET)[:15] == b"HTTP/1.1 200 OK", "the connection goes on"


@pytest.mark.parametrize("by_c", [True, False])
def test_start_response_behind_the_end(tmp_path: Path, by_c: bool) -> None:
    """Neither it nor write() sends anything, and exc_info is raised."""
    kept: list[Any] = []

    def app(_environ: Environ, start_response: Start) -> list[bytes]:
        kept.extend([start_response, start_response("200 OK", [("Content-Length", "5")])])
        return [b"hello"]

    with Bench(tmp_path, app, by_c) as it:
        connection, client = it.pieces.connect()
        it.serve(connection, client, GET)
        start_response, write = kept
        with pytest.raises(AssertionError, match="after the answer had ended"):
            write(b"more")
        with pytest.raises(AssertionError, match="called twice"):
            start_response("200 OK", [])
        error = KeyError("late")
        with pytest.raises(KeyError, match="late"):
            start_response("500 Oops", [], (KeyError, error, None))
        assert received(client) == b""


@pytest.mark.parametrize("by_c", [True, False])
def test_a_connection_that_is_closed_meanwhile(tmp_path: Path, by_c: bool) -> None:
    """Its answer goes nowhere, and not to what has the descriptor's number then."""
    with Bench(tmp_path, lambda environ, start: app(environ, start), by_c) as it, ExitStack() as stack:
        connection, client = it.pieces.connect()
        others: list[socket.socket] = []

        def app(_environ: Environ, start_response: Start) -> list[bytes]:
            number = connection.fd
            it.pieces.parts.table.close(connection, it.pieces.slot)
            while number not in [other.fileno() for other in others]:
                others.extend(map(stack.enter_context, socket.socketpair()))
            start_response("200 OK", [("Content-Length", "5")])
            return [b"hello"]

        assert it.serve(connection, client, GET) == b""
        assert [received(other) for other in others] == [b""] * len(others)
        assert it.pieces.counts().statuses[4] == 1, "the client is gone"
        assert it.pieces.log() == ""


def test_an_exchange_that_is_made_twice_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two threads of the app, or in a signal handler: one goes on, and the other is not left."""
    made: list[Any] = []

    class Late(Exchange):
        def __init__(self, *arguments: Any) -> None:
            made.append(weakref.ref(self))
            if len(made) == 1:
                kept[0]("200 OK", [("Server", "first"), ("Content-Length", "5")])
            super().__init__(*arguments)

    kept: list[Start] = []

    def app(_environ: Environ, start_response: Start) -> list[bytes]:
        kept.append(start_response)
        with pytest.raises(AssertionError, match="called twice"):
            start_response("200 OK", [("Server", "second")])
        kept.clear()
        return [b"hello"]

    with Bench(tmp_path, app, True) as it:
        monkeypatch.setattr("ostler.workers.wsgi_runner.Exchange", Late)
        answer = it.ask(GET)["answer"]
    assert b"Server: first" in answer
    assert answer.endswith(b"hello")
    gc.collect()
    assert [exchange() for exchange in made] == [None, None]


@pytest.mark.parametrize("by_c", [True, False])
def test_a_child_of_the_app(tmp_path: Path, by_c: bool) -> None:
    """A process that the app has forked sends no answer when the app returns in it."""
    program = f"""
import os, sys
from pathlib import Path
from ostler.workers.connection import Connection
from ostler.wsgi import forked
from tests.property.test_native_exchanges import GET, Bench

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    if os.fork() == 0:
        forked.note_fork()
        Connection.send = forked.leave_answered
    else:
        os.wait()
    return [b"hello"]

with Bench(Path({str(tmp_path)!r}), app, {by_c}) as it:
    print(it.ask(GET)["answer"].count(b"hello"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("many", [1_000, *thorough(60_000)])
def test_nothing_is_left(tmp_path: Path, many: int) -> None:
    """No objects and no memory of requests, errors included."""
    with Bench(tmp_path, lambda environ, start: behaviour.app(environ, start), True) as it:
        for behaviour in [
            *(Behaviour(kind=kind) for kind in ("list", "tuple", "generator", "closing", "none", "bytes")),
            *(Behaviour(kind="closing", error=ValueError, error_at=at) for at in ("app", "parts", "close")),
            *(Behaviour(late=late, kind="generator", parts=[b"", b"he", b"llo"]) for late in (True, False)),
            *(
                Behaviour(handled=True),
                Behaviour(written=[b"hello"]),
                Behaviour([("200 OK", [("Date", "x")])]),
            ),
            *(Behaviour([("200 \r", [])]), Behaviour([("200 OK", [("X", "y" * 9000)])]), Behaviour([])),
        ]:
            it.ask_often(many // 2)  # what is made once, e.g. of source lines for tracebacks
            gc.collect()
            objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
            number = many if behaviour.error is None else many // 2
            it.ask_often(number)
            gc.collect()
            assert len(gc.get_objects()) - objects < 50
            assert sys.getallocatedblocks() - blocks < number // 2
