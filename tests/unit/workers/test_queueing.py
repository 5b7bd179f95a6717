"""How long requests have waited, independent of when the worker polls;
and the answer to those that waited too long.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.osapi.tcp_info import TICK as TICK_NS
from ostler.scoreboard import layout
from ostler.scoreboard.counts import Counts
from ostler.workers import queueing
from ostler.workers.handoff import HandOff
from ostler.workers.queueing import QueueTimes, waiting_time
from ostler.wsgi.environ import Environ
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE, Rig, Serve

Start = Callable[..., Any]
# The kernel's time is exact to a tick of at most 10 ms, and one tick is subtracted to be safe.
TICK = 0.02


class Gate:
    """An app whose request `/gate` ends when the test says so.

    Attributes:
        calls: the paths with which the app was called.
    """

    def __init__(self) -> None:
        self._open = threading.Event()
        self.calls: list[str] = []

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.calls.append(path)
        if path == "/gate":
            assert self._open.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def hold(self, rig: Rig) -> Any:
        """A client whose request stays in the app until `release`."""
        client = rig.client()
        client.ask("/gate")
        until(lambda: "/gate" in self.calls, "it is in the app")
        return client

    def release(self) -> None:
        self._open.set()


def waits(counts: Counts) -> list[float]:
    """The counted waits, as upper limits of buckets."""
    return [layout.bucket_limit(bucket) for bucket, count in enumerate(counts.queued) for _ in range(count)]


def let_pass(seconds: float) -> None:
    """Let time pass while a request waits, because that is what these tests measure."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end, "time passes")


def test_requests_do_not_wait_for_an_idle_worker(serve: Serve) -> None:
    """Hardly any request counts as having waited, unless the machine is too busy."""
    rig = serve(Gate())
    client = rig.client()
    client.get("/first")
    for _ in range(50):
        client.get("/")
    until(lambda: rig.counts().requests == 51, "all are counted")
    assert rig.counts().queue_wait(0.5) == 0.0


def test_usual_requests_are_not_asked_about(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked only about requests that may have waited:
    on new connections, or if the machine was too busy.
    """
    asked: list[int] = []

    def asking(sock: Any, now: int, earliest: int, latest: int) -> int:
        asked.append(now - earliest)
        return 0

    monkeypatch.setattr(queueing, "waiting_time", asking)
    rig = serve(Gate())
    client = rig.client()
    for _ in range(200):
        client.get("/")
    assert all(possible >= layout.LEAST_QUEUED for possible in asked)
    assert len(asked) < 50


@pytest.mark.parametrize("new", [True, False])
def test_slow_passes_ask_the_kernel_rarely(serve: Serve, monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    """With an app that takes 2 ms every request may have waited: few system calls, and good estimates."""
    asked = 0

    def asking(sock: Any, now: int, earliest: int, latest: int) -> int:
        nonlocal asked
        asked += 1
        return waiting_time(sock, now, earliest, latest)

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        time.sleep(0.002)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    monkeypatch.setattr(queueing, "waiting_time", asking)
    rig = serve(app)
    requests, clients = 25, 8

    def visit() -> None:
        client = rig.client()
        for _ in range(requests):
            if new:
                client = rig.client()
            client.get("/")

    visitors = [threading.Thread(target=visit) for _ in range(clients)]
    began = time.monotonic()
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    took = time.monotonic() - began
    total = requests * clients
    until(lambda: rig.counts().requests == total, "all are counted")
    # At most once per 50 ms, and for every eighth request of a pass.
    assert 0 < asked <= 2 + took / 0.05 + total / 8
    wait = rig.counts().queue_wait(0.5)
    assert wait is not None
    assert wait > 0.002, "with eight clients each waits for several others"


@pytest.mark.parametrize("new", [True, False])
def test_a_request_that_comes_while_the_worker_is_busy(serve: Serve, new: bool) -> None:
    """The wait counts from its arrival, not from the worker's poll; on new and on open connections."""
    gate = Gate()
    rig = serve(gate)
    client = rig.client()
    if not new:
        client.get("/before")
    holding = gate.hold(rig)
    client.ask("/waits")
    let_pass(0.1)
    gate.release()
    assert holding.answer().body == b"ok"
    assert client.answer().body == b"ok"
    until(lambda: rig.counts().requests == 3 - new, "all are counted")
    wait = max(waits(rig.counts()))
    assert 0.1 - TICK <= wait < PATIENCE
    assert rig.counts().queue_wait(0.95) == wait


@pytest.mark.parametrize("new", [True, False])
def test_a_request_that_comes_late_has_not_waited_long(serve: Serve, new: bool) -> None:
    """It arrived at the end of a long request: the worker has not polled for long, which is not its wait."""
    gate = Gate()
    rig = serve(gate)
    client = rig.client()
    if not new:
        client.get("/before")
    holding = gate.hold(rig)
    let_pass(0.5)
    client.ask("/late")
    gate.release()
    holding.answer()
    client.answer()
    until(lambda: rig.counts().requests == 3 - new, "all are counted")
    assert max(waits(rig.counts()), default=0.0) < 0.25


def test_with_threads(serve: Serve) -> None:
    """All threads are in the app: requests that the watcher has received meanwhile have waited as well."""
    gate = Gate()
    rig = serve(gate, threads=2)
    client = rig.client()
    client.get("/before")
    holding = [rig.client() for _ in range(2)]
    for held in holding:
        held.ask("/gate")
    until(lambda: gate.calls.count("/gate") == 2, "both threads are in the app")
    client.ask("/waits")
    let_pass(0.1)
    gate.release()
    assert client.answer().body == b"ok"
    for held in holding:
        held.answer()
    until(lambda: rig.counts().requests == 4, "all are counted")
    assert max(waits(rig.counts())) >= 0.1 - TICK


def test_behind_requests_of_the_same_client(serve: Serve) -> None:
    """Pipelined requests wait for earlier ones on their connection, which does not count:
    more workers would not help.
    """
    gate = Gate()
    rig = serve(gate, queue_timeout=0.05)
    client = rig.client()
    client.get("/before")
    client.send(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\nGET /behind HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: "/gate" in gate.calls, "it is in the app")
    let_pass(0.2)
    gate.release()
    assert [client.answer().status for _ in range(2)] == ["200 OK", "200 OK"]
    assert max(waits(rig.counts()), default=0.0) < 0.2 - TICK


@pytest.mark.parametrize("threads", [1, 2])
def test_sent_while_a_request_of_the_same_client_is_answered(serve: Serve, threads: int) -> None:
    """The same if they do not arrive together, whichever thread serves the second one."""
    gate = Gate()
    rig = serve(gate, queue_timeout=0.05, threads=threads)
    client = rig.client()
    client.ask("/gate")
    until(lambda: "/gate" in gate.calls, "it is in the app")
    client.ask("/behind")
    let_pass(0.2)
    gate.release()
    assert [client.answer().status for _ in range(2)] == ["200 OK", "200 OK"]
    assert max(waits(rig.counts()), default=0.0) < 0.2 - TICK


def test_behind_an_answer_that_the_client_does_not_take(serve: Serve) -> None:
    """A client that pipelines and reads slowly waits for itself, which does not count."""
    big = b"x" * (1 << 22)

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        body = big if environ["PATH_INFO"] == "/big" else b"ok"
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    rig = serve(app, queue_timeout=0.05)
    client = rig.client(receive_buffer=4096)
    client.get("/before")
    client.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\nGET /behind HTTP/1.1\r\nHost: x\r\n\r\n")
    let_pass(0.2)
    assert client.answer().body == big
    assert client.answer().body == b"ok"


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/1.0"])
def test_too_late(serve: Serve, protocol: str) -> None:
    """503 with Retry-After, without calling the app; logged and counted; the connection stays if possible."""
    gate = Gate()
    rig = serve(gate, queue_timeout=0.05, access=True)
    client = rig.client()
    client.get("/before")
    holding = gate.hold(rig)
    client.send(f"POST /late {protocol}\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".encode())
    let_pass(0.15)
    gate.release()
    holding.answer()
    answer = client.answer()
    assert answer.status == "503 Service Unavailable"
    assert answer.headers["retry-after"] == "1"
    if protocol == "HTTP/1.1":
        assert "connection" not in answer.headers
        assert client.get("/again").body == b"ok"
    else:
        assert client.rest() == b""
    assert "/late" not in gate.calls
    until(lambda: rig.counts().errors == 1, "it is counted")
    counts = rig.counts()
    assert counts.statuses[5] == 1
    assert sum(counts.histogram) == counts.requests - 1, "it spent no time in the app"
    until(lambda: any("/late" in line for line in rig.access_log()), "it is logged")
    (line,) = [line for line in rig.access_log() if "/late" in line]
    assert line == f"POST /late {protocol} 503 {len(answer.body)}"
    (event,) = map(json.loads, rig.log().splitlines())
    assert (event["event"], event["rule"], event["status"]) == ("request_refused", "queue_timeout", 503)
    assert rig.counts().refused[layout.RULES.index("queue_timeout")] == 1


def test_in_time(serve: Serve) -> None:
    """A request that has waited no longer than allowed is served; without the setting each one is."""
    gate = Gate()
    rig = serve(gate, queue_timeout=PATIENCE)
    client = rig.client()
    holding = gate.hold(rig)
    client.ask("/waits")
    let_pass(0.05)
    gate.release()
    holding.answer()
    assert client.answer().body == b"ok"


def test_a_head_request_too_late(serve: Serve) -> None:
    """HEAD gets the same answer, without a body."""
    gate = Gate()
    rig = serve(gate, queue_timeout=0.02)
    client = rig.client()
    client.get("/before")
    holding = gate.hold(rig)
    client.send(b"HEAD /late HTTP/1.1\r\nHost: x\r\n\r\n")
    let_pass(0.1)
    gate.release()
    holding.answer()
    assert client.answer("HEAD").status == "503 Service Unavailable"
    assert client.get("/again").body == b"ok"


def test_what_was_handed_off(tmp_path: Path, handoff: HandOff) -> None:
    """A connection that a busy worker handed off, and no sibling has received, waits since its arrival."""
    gates = [Gate(), Gate()]
    rigs: list[Rig] = []
    for number, gate in enumerate(gates):
        folder = tmp_path / str(number)
        folder.mkdir()
        rigs.append(Rig(folder, gate, handoff=handoff, threads=2))
    with rigs[0], rigs[1]:
        client = rigs[0].client()
        client.get("/before")
        holding = []
        for rig, gate in zip(rigs, gates, strict=True):
            for count in (1, 2):
                held = rig.client()
                held.ask("/gate")
                until(lambda c=count, g=gate: g.calls.count("/gate") == c, "it is in the app")
                holding.append(held)
        until(lambda: all(rig.engine.leader.watcher_polls for rig in rigs), "the watchers poll")
        client.ask("/waits")
        until(lambda: sum(rig.counts().handed_off for rig in rigs) == 1, "it was handed off")
        let_pass(0.1)
        for gate in gates:
            gate.release()
        assert client.answer().body == b"ok"
        for held in holding:
            held.answer()
        until(lambda: sum(rig.counts().requests for rig in rigs) == 6, "all are counted")
        assert max(waits(rigs[0].counts()) + waits(rigs[1].counts())) >= 0.1 - TICK


# -- which requests are asked about ----------------------------------------------------------------------

MILLISECOND = 1_000_000


class Passes:
    """QueueTimes of a worker with a simulated clock. All times are in milliseconds.

    Attributes:
        kernel: how long ago, according to the kernel, the request arrived.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, exact: bool = False) -> None:
        self._reactor: Any = SimpleNamespace(now=0)
        self._times = QueueTimes(self._reactor, exact)
        self.kernel = 0.0
        self.asked = 0
        monkeypatch.setattr(queueing, "since_last_received", self._ask)

    def _ask(self, _sock: object) -> int:
        self.asked += 1
        return int(self.kernel * MILLISECOND) + TICK_NS

    def look(self, now: float) -> None:
        """A pass of the loop begins."""
        self._reactor.now = int(now * MILLISECOND)

    def waited(self, now: float, earliest: float, served: float = 0) -> float:
        connection: Any = SimpleNamespace(sock=None, answered_at=int(served * MILLISECOND))
        found = self._times.waited(connection, int(now * MILLISECOND), int(earliest * MILLISECOND))
        return found / MILLISECOND


def test_the_first_request_of_a_pass_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later ones in the pass count as having waited as long before the pass, within what is possible."""
    passes = Passes(monkeypatch)
    passes.look(1000)
    passes.kernel = 80
    assert passes.waited(1002, 900) == 80
    assert passes.waited(1007, 900) == 85
    assert passes.waited(1009, 990) == 19
    assert passes.asked == 1


def test_every_eighth_request_of_a_pass_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a long pass, whose requests have waited differently, is not judged by its first one only."""
    passes = Passes(monkeypatch)
    passes.look(1000)
    passes.kernel = 80
    assert [passes.waited(1000, 900) for _ in range(8)] == [80] * 8
    passes.kernel = 20
    assert [passes.waited(1000, 900) for _ in range(8)] == [20] * 8
    assert passes.asked == 2


def test_quick_passes_share_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 50 ms the kernel is not asked again: the middle of the possible arrival times is assumed."""
    passes = Passes(monkeypatch)
    passes.look(1000)
    passes.waited(1000, 900)
    passes.look(1010)
    assert passes.waited(1013, 1000) == 3 + 5
    assert passes.waited(1013, 1000, served=1008) == 3 + 1
    assert passes.waited(1013, 900) == 3, "nothing is known but that it was there"
    assert passes.waited(1013, 1000, served=1012.5) == 0
    passes.look(1051)
    passes.kernel = 40
    assert passes.waited(1052, 1000) == 40
    assert passes.asked == 2


def test_new_connections_of_a_busy_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as having waited as long as the one that was asked about:
    one in eight of them, and one per 50 ms.
    """
    passes = Passes(monkeypatch)
    passes.kernel = 30
    for number in range(8):
        passes.look(1000 + number)
        assert passes.waited(1000 + number, -1) == 30
    passes.kernel = 20
    for number in range(8, 16):
        passes.look(1000 + number)
        assert passes.waited(1000 + number, -1) == 20
    passes.kernel = 10
    passes.look(1100)
    assert passes.waited(1100, -1) == 10
    assert passes.asked == 3


def test_with_a_queue_timeout_each_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a client must not depend on an estimate."""
    passes = Passes(monkeypatch, exact=True)
    for number in range(20):
        passes.look(1000 + number // 5)
        passes.kernel = number
        assert passes.waited(1010, 900) == (number if number >= 1 else 0)
    assert passes.asked == 20


def test_waits_below_a_millisecond_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scoreboard has no bucket for them, and the kernel is not asked if the wait can't be longer."""
    passes = Passes(monkeypatch)
    passes.look(1000)
    assert passes.waited(1000.5, 999.6) == 0
    assert passes.asked == 0
    passes.kernel = 0.9
    assert passes.waited(1002, 900) == 0
    assert passes.asked == 1


# -- asking the kernel -----------------------------------------------------------------------------------


def test_the_kernel_knows(serve: Serve) -> None:
    """The time since the last bytes arrived, also on a connection that was not accepted yet."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        client.sendall(b"x")
        let_pass(0.1)
        sock, _ = listener.accept()
        with sock:
            now = time.monotonic_ns()
            assert 0.1 - TICK <= waiting_time(sock, now, 0, now) / 1e9 < PATIENCE
            # It can't have arrived before that.
            assert waiting_time(sock, now, now - 5_000_000, now) == 5_000_000
            assert waiting_time(sock, now, now + 1, now) == 0


def test_the_kernel_does_not_know() -> None:
    """For Unix sockets the kernel gives no time: then the time counts since the request was first known."""
    one, other = socket.socketpair()
    with one, other:
        assert waiting_time(one, 10_000, 0, 4_000) == 6_000
        assert waiting_time(one, 10_000, 0, 11_000) == 0


def test_a_kernel_with_a_shorter_tcp_info() -> None:
    """A result that is shorter than Linux's structure is not used."""

    class Short:
        def getsockopt(self, *_: int) -> bytes:
            return bytes(8)

    assert waiting_time(Short(), 10_000, 0, 4_000) == 6_000


def test_the_answer_to_late_requests() -> None:
    """Its Content-Length is that of the text."""
    heads: list[tuple[str, list[tuple[str, str]]]] = []
    (body,) = queueing.queue_timeout_app({}, lambda status, headers: heads.append((status, headers)))
    assert dict(heads[0][1])["Content-Length"] == str(len(body))
