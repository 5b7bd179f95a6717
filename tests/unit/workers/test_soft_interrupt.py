"""Overdue requests are ended, and no others; requests that ask for more time get it."""

import gc
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.hooks.calling import HookFunctions
from ostler.hooks.requests import RequestHooks
from ostler.osapi.process import INTERRUPT_SIGNAL
from ostler.scoreboard import layout
from ostler.scoreboard.cell_reader import InFlight
from ostler.workers import soft_interrupt as module
from ostler.workers.handoff import HandOff
from ostler.workers.soft_interrupt import LONG_REQUEST_NS, SoftInterrupts
from ostler.wsgi.environ import Environ
from ostler.wsgi.interruption import DeadlineExceeded
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE, Client, Rig, Serve
from tests.unit.workers.test_queueing import let_pass

Start = Callable[..., Any]


class Shop:
    """An app whose request `/hang` does not end by itself, in a way that the test chooses.

    Attributes:
        caught: the paths in which DeadlineExceeded was seen.
        closed: how often a result was closed.
    """

    def __init__(self, hang: Callable[[], object] = lambda: time.sleep(1000)) -> None:
        self._hang = hang
        self.caught: list[str] = []
        self.closed = 0

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        try:
            if path == "/stream":
                start_response("200 OK", [])
                return Stream(self)
            if path == "/hang":
                self._hang()
            if path == "/long":
                until(lambda: (self.caught and None) or None, "for ever", within=0.2)
        except DeadlineExceeded:
            self.caught.append(path)
            raise
        except Exception:
            pass
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def hang(self) -> None:
        self._hang()


class Stream:
    """A result that yields one block and then blocks."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def __iter__(self) -> Iterator[bytes]:
        yield b"some"
        self._shop.hang()

    def close(self) -> None:
        self._shop.closed += 1


def loop() -> None:
    while True:
        pass


def receive() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.recv(1)


def nap() -> None:
    """For threads: system calls in them are not interrupted, so these are short."""
    while True:
        time.sleep(0.001)


def swallow() -> None:
    try:
        loop()
    except Exception:
        raise AssertionError("an app's handling of errors has met it") from None


@pytest.fixture
def handled() -> Iterator[Callable[[Rig], None]]:
    """Installs the rig's handler for the signal, as a worker does."""
    before = signal.getsignal(INTERRUPT_SIGNAL)
    yield lambda rig: signal.signal(INTERRUPT_SIGNAL, rig.engine.soft_interrupts.interrupt)
    signal.signal(INTERRUPT_SIGNAL, before if before is not None else signal.SIG_DFL)


def old(rig: Rig, path: str) -> InFlight:
    """Wait until a request is in the app for long enough to be interrupted."""

    def look() -> InFlight | None:
        now = time.monotonic_ns()
        found = [r for r in rig.scoreboard.in_flight(rig.cell) if r.path == path]
        return found[0] if found and now - found[0].started_ns > LONG_REQUEST_NS else None

    return until(look, f"{path} has been there for long")


def interrupt(rig: Rig, path: str, for_good: bool = False) -> None:
    """Do what the supervisor does with an overdue request; `for_good`: `limit_request_time` is over."""
    request = old(rig, path)
    rig.scoreboard.mark_overdue(rig.cell, request.thread, request.started_ns, for_good=for_good)
    os.kill(os.getpid(), INTERRUPT_SIGNAL)


Handled = Callable[[Rig], None]


@pytest.mark.parametrize("hang", [lambda: time.sleep(1000), loop, receive, swallow])
def test_the_main_thread(tmp_path: Path, handled: Handled, hang: Callable[[], None]) -> None:
    """Whatever it hangs in, including a system call: 504, once in the counts and the log;
    then it serves again.
    """
    shop = Shop(hang)
    rig = Rig(tmp_path, shop, access=True)
    handled(rig)

    def play() -> None:
        client = rig.client()
        client.ask("/hang")
        interrupt(rig, "/hang")
        answer = client.answer()
        assert (answer.status, answer.body) == ("504 Gateway Timeout", b"Gateway Timeout\n")
        assert answer.headers["connection"] == "close"
        assert client.rest() == b""
        assert rig.client().get("/").body == b"ok"

    rig.run_here(play)
    assert shop.caught == ["/hang"]
    assert (tmp_path / "access").read_text().splitlines()[0] == "GET /hang HTTP/1.1 504 16"
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("threads", [1, 4])
def test_other_threads(serve: Serve, handled: Handled, threads: int) -> None:
    """The same in another thread than the main one; threads that serve beside it are not affected."""
    gate = threading.Event()
    shop = Shop(nap)

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/beside":
            gate.wait(PATIENCE)
        return shop(environ, start_response)

    rig = serve(app, threads=threads, access=True)
    handled(rig)
    client, beside = rig.client(), rig.client()
    client.ask("/hang")
    old(rig, "/hang")
    if threads > 1:
        beside.ask("/beside")
        old(rig, "/beside")
    interrupt(rig, "/hang")
    assert client.answer().status == "504 Gateway Timeout"
    assert client.rest() == b""
    gate.set()
    if threads > 1:
        assert beside.answer().body == b"ok"
    assert rig.client().get("/").body == b"ok"
    assert shop.caught == ["/hang"]
    assert rig.counts().statuses[5] == 1
    assert rig.counts().errors == 1
    assert rig.log() == ""


def test_head(tmp_path: Path, handled: Handled) -> None:
    """HEAD gets no body."""
    rig = Rig(tmp_path, Shop())
    handled(rig)

    def play() -> None:
        client = rig.client()
        client.send(b"HEAD /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        interrupt(rig, "/hang")
        assert client.answer("HEAD").status == "504 Gateway Timeout"
        assert client.rest() == b""

    rig.run_here(play)


@pytest.mark.parametrize("main", [True, False])
def test_an_answer_that_has_begun(tmp_path: Path, serve: Serve, handled: Handled, main: bool) -> None:
    """It is cut, so that the client sees that it is incomplete; close() of the result is called."""
    shop = Shop(nap)
    rig = Rig(tmp_path, shop, access=True) if main else serve(shop, access=True)
    handled(rig)

    def play() -> None:
        client = rig.client()
        client.ask("/stream")
        interrupt(rig, "/stream")
        raw = client.rest()
        assert raw.endswith(b"\r\n\r\n4\r\nsome\r\n")
        assert rig.client().get("/").body == b"ok"

    if main:
        rig.run_here(play)
    else:
        play()
    assert shop.closed == 1
    assert (tmp_path / "access").read_text().splitlines()[0] == "GET /stream HTTP/1.1 504 4"
    assert (tmp_path / "log").read_text() == ""


def test_what_is_kept_of_a_cut_answer_is_not_sent(tmp_path: Path, handled: Handled) -> None:
    """A slow client receives no more of it, and the worker keeps nothing."""
    block = b"x" * (1 << 22)
    closed: list[int] = []

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str(len(block) + 1))])
        try:
            yield block
            time.sleep(1000)
        finally:
            closed.append(1)

    rig = Rig(tmp_path, app)
    handled(rig)

    def play() -> None:
        client = rig.client(receive_buffer=4096)
        client.ask("/slow")
        interrupt(rig, "/slow")
        until(lambda: rig.counts().closed == 1, "the connection is closed")
        assert len(client.rest()) < len(block)

    rig.run_here(play)
    assert closed == [1]


def test_close_that_hangs(tmp_path: Path, handled: Handled) -> None:
    """close() of a result is code of the app: it is ended, and the answer that was sent counts."""

    class Result(list[bytes]):
        def close(self) -> None:
            time.sleep(1000)

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return Result([b"ok"]) if environ["PATH_INFO"] == "/hang" else [b"ok"]

    rig = Rig(tmp_path, app)
    handled(rig)

    def play() -> None:
        client = rig.client()
        client.ask("/hang")
        interrupt(rig, "/hang")
        assert client.answer().body == b"ok"
        assert client.get("/").body == b"ok"

    rig.run_here(play)
    assert "DeadlineExceeded" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("hang", [nap, receive])
def test_post_request_that_hangs(
    tmp_path: Path, serve: Serve, handled: Handled, main: bool, hang: Callable[[], None]
) -> None:
    """The hook belongs to its request and is ended like the app. The answer was sent;
    the next request is served.
    """
    if not main and hang is receive:
        pytest.skip("a system call is ended in the main thread only")
    logged: list[str] = []
    calls = HookFunctions(
        {"post_request": lambda _worker, req, _environ, _resp: hang() if req.path == "/post" else None},
        lambda _level, name, **_fields: logged.append(name),
    )
    worker: Any = SimpleNamespace(retire_if_due=lambda: None)
    exchange = RequestHooks(calls, worker).exchange()
    options: dict[str, Any] = {"access": True, "exchange": exchange}
    rig = Rig(tmp_path, Shop(), **options) if main else serve(Shop(), **options)
    handled(rig)

    def play() -> None:
        client = rig.client()
        client.ask("/post")
        assert client.answer().body == b"ok"
        interrupt(rig, "/post")
        assert client.rest() == b""
        assert rig.client().get("/").body == b"ok"
        until(lambda: rig.counts().statuses[2] == 2, "both are counted")

    if main:
        rig.run_here(play)
    else:
        play()
    lines = (tmp_path / "access").read_text().splitlines()
    assert lines == ["GET /post HTTP/1.1 200 2", "GET / HTTP/1.1 200 2"]
    assert (tmp_path / "log").read_text() == ""
    assert logged == []


def test_a_client_that_takes_nothing(serve: Serve, handled: Handled) -> None:
    """A thread that waits for a slow client is not ended by the time-out of its app, because it is not the
    app that takes long; but it is, in our own code, when the request has taken all of its time.
    """

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield b"x" * 65536

    rig = serve(app, buffer_response=65536, buffer_response_file=0)
    handled(rig)
    client = rig.client(receive_buffer=4096)
    client.ask("/slow")
    until(lambda: old(rig, "/slow").progressed == math.inf, "the app waits for its client")
    interrupt(rig, "/slow")
    let_pass(0.3)
    assert rig.counts().closed == 0
    interrupt(rig, "/slow", for_good=True)
    until(lambda: rig.counts().closed == 1, "the connection is closed")
    assert rig.log() == ""


# -- what must not be hit --------------------------------------------------------------------------------


def test_the_next_request_is_not_interrupted(tmp_path: Path, handled: Handled) -> None:
    """The signal arrives when the overdue request has ended:
    the request that is in the thread now continues.
    """
    gate = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/next":
            while not gate.is_set():
                pass
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    rig = Rig(tmp_path, app)
    handled(rig)

    def play() -> None:
        words = rig.words(0)
        client = rig.client()
        client.ask("/next")
        request = old(rig, "/next")
        rig.scoreboard.mark_overdue(rig.cell, 0, request.started_ns - 1)
        seen = len(handled_signals)
        os.kill(os.getpid(), INTERRUPT_SIGNAL)
        until(lambda: len(handled_signals) > seen, "the handler has run")
        assert words[layout.STARTED] == request.started_ns
        gate.set()
        assert client.answer().status == "200 OK"

    handled_signals: list[int] = []
    ours = rig.engine.soft_interrupts.interrupt

    def noting(signum: int, frame: Any) -> None:
        try:
            ours(signum, frame)
        finally:
            handled_signals.append(signum)

    signal.signal(INTERRUPT_SIGNAL, noting)
    rig.run_here(play)


class Stage:
    """A slot that shows an overdue, marked request of the calling thread."""

    def __init__(self, tmp_path: Path) -> None:
        self.rig = Rig(tmp_path, Shop())
        self.soft_interrupts = self.rig.engine.soft_interrupts
        self.words = self.rig.words(0)
        self.words[layout.IDENT] = threading.get_ident()
        self.started = time.monotonic_ns() - 2 * LONG_REQUEST_NS
        self.words[layout.STARTED] = self.words[layout.OVERDUE] = self.started


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    with stage.rig:
        # The slot belongs to the calling thread, here that of the test.
        until(lambda: stage.words[layout.IDENT] != threading.get_ident() or None, "the engine runs")
        stage.words[layout.IDENT] = threading.get_ident()
        yield stage
        stage.words[layout.STARTED] = 0


def test_nothing_is_raised_outside_of_the_app(stage: Stage) -> None:
    """Just before the app is called, and just after it has returned, the handler does nothing."""
    stage.soft_interrupts.interrupt(INTERRUPT_SIGNAL, sys._getframe())
    stage.soft_interrupts.interrupt(INTERRUPT_SIGNAL, None)


def test_nothing_is_raised_in_another_handler(
    tmp_path: Path, handled: Handled, handoff: HandOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of ours that interrupts the app, here one that starts a thread, is not interrupted itself."""
    shop = Shop()
    rig = Rig(tmp_path, shop, handoff=handoff)
    handled(rig)
    start = rig.engine.leader.start_watcher

    def watch() -> None:
        request = rig.scoreboard.in_flight(rig.cell)[0]
        rig.scoreboard.mark_overdue(rig.cell, request.thread, request.started_ns)
        signal.raise_signal(INTERRUPT_SIGNAL)
        start()

    monkeypatch.setattr(rig.engine.leader, "start_watcher", watch)
    before = signal.signal(signal.SIGUSR1, lambda *_: rig.engine.on_message())

    def play() -> None:
        client = rig.client()
        client.ask("/hang")
        old(rig, "/hang")

        def is_watched() -> bool:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            return rig.engine.leader.has_watcher

        until(is_watched, "the thread was started")
        assert shop.caught == []
        interrupt(rig, "/hang")
        assert client.answer().status == "504 Gateway Timeout"
        assert rig.client().get("/").body == b"ok"

    try:
        rig.run_here(play)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert rig.log() == ""


def in_app(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_in_app", lambda _frame: True)
    stage.soft_interrupts.interrupt(INTERRUPT_SIGNAL, sys._getframe())


def test_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has swallowed the exception is not interrupted again: its worker will be replaced."""
    with pytest.raises(DeadlineExceeded, match="timeout"):
        in_app(stage, monkeypatch)
    in_app(stage, monkeypatch)


@pytest.mark.parametrize("reason", ["ended", "another", "extended", "young"])
def test_what_is_not_interrupted(stage: Stage, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """No request, another than was marked, one that has more time, one that is too young to be overdue."""
    words = stage.words
    if reason == "ended":
        words[layout.STARTED] = 0
    elif reason == "another":
        words[layout.STARTED] += 1
    elif reason == "extended":
        stage.soft_interrupts.extend(60)
    else:
        words[layout.STARTED] = words[layout.OVERDUE] = time.monotonic_ns() + 1_000_000_000
    in_app(stage, monkeypatch)


def test_a_signal_within_the_handler(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is interrupted by itself while it holds its lock: it neither hangs nor raises twice."""
    hits: list[int] = []

    def set_exception(ident: int, kind: Any) -> None:
        hits.append(ident)
        stage.soft_interrupts.interrupt(INTERRUPT_SIGNAL, sys._getframe())

    monkeypatch.setattr(module, "_set_exception", set_exception)
    stage.words[layout.IDENT] = 4711
    stage.soft_interrupts.interrupt(INTERRUPT_SIGNAL, sys._getframe())
    assert hits == [4711]


def test_a_pending_exception_is_taken_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread ends its request after the exception was set and before it was raised:
    it is taken back, once.
    """
    taken_back: list[tuple[int, Any]] = []
    monkeypatch.setattr(module, "_set_exception", lambda ident, kind: taken_back.append((ident, kind)))
    ident = 0

    def thread() -> None:
        nonlocal ident
        ident = threading.get_ident()
        stage.words[layout.IDENT] = ident
        until(lambda: taken_back, "it was set")
        stage.words[layout.STARTED] = 0
        stage.soft_interrupts.end(stage.started)
        stage.soft_interrupts.end(stage.started + 1)  # the next request

    other = threading.Thread(target=thread)
    other.start()
    until(lambda: ident == stage.words[layout.IDENT] or None, "it serves")
    stage.soft_interrupts.interrupt(INTERRUPT_SIGNAL, sys._getframe())
    other.join(PATIENCE)
    assert taken_back == [(ident, DeadlineExceeded), (ident, None)]


def test_an_exception_at_the_end_of_the_request(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised between the app's return and the end of the request: only the connection ends."""

    def end(self: SoftInterrupts, started: int) -> None:
        raise DeadlineExceeded

    monkeypatch.setattr(SoftInterrupts, "end", end)
    rig = serve(Shop(lambda: time.sleep(2 * LONG_REQUEST_NS / 1e9)))
    client = rig.client()
    client.ask("/hang")
    assert client.answer().body == b"ok"
    assert client.rest() == b""
    assert rig.client().get("/").body == b"ok"
    until(lambda: not rig.scoreboard.in_flight(rig.cell), "the slot is free")
    assert rig.log() == ""


@pytest.mark.parametrize("by_c", [False, True])
def test_at_any_moment(
    serve: Serve,
    handled: Handled,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    by_c: bool,
) -> None:
    """Requests are marked when they are about to end: each is answered or cut, and no other one is
    interrupted. The C extension lets no other thread run between app and answer, so that it hardly cuts any.
    """
    if not by_c:
        monkeypatch.setattr("ostler.native.module", None)
    monkeypatch.setattr(module, "LONG_REQUEST_NS", 0)
    monkeypatch.setattr("ostler.workers.wsgi_runner.LONG_REQUEST_NS", 0)
    marked: set[str] = set()
    hit: list[str] = []

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        name = environ["PATH_INFO"]
        try:
            for _ in range(10):
                time.sleep(0)  # releases the interpreter lock
            start_response("200 OK", [("Content-Length", str(len(name)))])
            return [name.encode()]
        except DeadlineExceeded:
            hit.append(name)
            raise

    # An exception in a `__del__` would be lost, so no garbage of earlier tests must be collected meanwhile.
    gc.collect()
    gc.disable()
    request.addfinalizer(gc.enable)
    rig = serve(app, threads=4)
    handled(rig)
    stop = threading.Event()
    outcomes: list[str] = []

    def ask(number: int) -> None:
        client = rig.client()
        count = 0
        while not stop.is_set():
            count += 1
            name = f"/{number}/{count}"
            outcome = one(client, name)
            outcomes.append(outcome)
            if outcome != "200":
                client.close()
                client = rig.client()

    def one(client: Client, name: str) -> str:
        client.ask(name)
        try:
            answer = client.answer()
        except AssertionError:
            return "cut"  # the connection ended
        assert answer.body == (name.encode() if answer.status == "200 OK" else b"Gateway Timeout\n")
        return answer.status[:3]

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    try:
        end = time.monotonic() + PATIENCE
        cuts = 0 if by_c else 1
        while (len(hit) < 50 or outcomes.count("cut") < cuts) and time.monotonic() < end:
            for request in rig.scoreboard.in_flight(rig.cell):
                marked.add(request.path)
                rig.scoreboard.mark_overdue(rig.cell, request.thread, request.started_ns)
            os.kill(os.getpid(), INTERRUPT_SIGNAL)
    finally:
        stop.set()
        for thread in clients:
            thread.join(PATIENCE)
    assert len(hit) >= 50
    assert set(hit) <= marked
    assert {"200", "504"} == set(outcomes) - {"cut"}
    assert outcomes.count("cut") >= cuts
    assert rig.log() == ""
    assert rig.client().get("/still").body == b"/still"


# -- more time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_extending_a_deadline(serve: Serve, threads: int) -> None:
    """The request has this many seconds from now, never fewer than before; the next has the usual time."""
    gate = threading.Event()
    extended: list[float] = []

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/long":
            extended.append(time.monotonic())
            environ["ostler.extend_deadline"](100)
            environ["ostler.extend_deadline"](1)
        gate.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    rig = serve(app, threads=threads)
    client = rig.client()
    client.ask("/long")
    request = old(rig, "/long")
    assert 100 <= request.extended_until - extended[0] < 100 + PATIENCE
    assert request.deadline(30) == request.extended_until
    assert request.deadline(0) is None
    assert request.deadline(1000) == request.started + 1000
    gate.set()
    client.answer()
    gate.clear()
    client.ask("/usual")
    request = old(rig, "/usual")
    assert request.extended_until == 0.0
    assert request.deadline(30) == request.started + 30
    gate.set()
    client.answer()


def test_extending_the_deadline_of_no_request(serve: Serve) -> None:
    """A thread of the app serves no request: that is an error."""
    heard: list[BaseException] = []

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        def extend() -> None:
            try:
                environ["ostler.extend_deadline"](5)
            except RuntimeError as error:
                heard.append(error)

        thread = threading.Thread(target=extend)
        thread.start()
        thread.join()
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    rig = serve(app)
    assert rig.client().get().status == "200 OK"
    assert "serves no request" in str(heard[0])
    with pytest.raises(RuntimeError, match="serves no request"):
        rig.engine.soft_interrupts.extend(5)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e30])
def test_extending_by_nonsense(serve: Serve, seconds: float) -> None:
    """A value that is not a time is an error that names it."""
    rig = serve(Shop())
    with pytest.raises(ValueError, match=r"can't be extended by"):
        rig.engine.soft_interrupts.extend(seconds)


def test_what_the_app_is_given(serve: Serve) -> None:
    """One function object for all requests of a worker: it costs nothing per request."""
    seen: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        seen.append(environ["ostler.extend_deadline"])
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    rig = serve(app)
    for _ in range(2):
        rig.client().get()
    assert seen[0] is seen[1]
