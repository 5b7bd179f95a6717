"""Connections that move from worker to worker: two engines in one process share a hand-off.

Each engine has its own listener and its own scoreboard, so it is known which of them has a connection.
"""

import gc
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ostler.workers.handoff import HandOff
from ostler.wsgi.environ import Environ
from tests.kit.daemon import until
from tests.unit.osapi.test_received import lingering
from tests.unit.workers.rig import PATIENCE, Client, Rig, Serve

Start = Callable[..., Any]
BOTH = pytest.mark.parametrize("threads", [1, 4])
# Longer than a request must take for a worker with one thread to start its watcher.
LONG = 0.025


class Worker:
    """An app that answers with its name, and waits in `/wait`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths: list[str] = []
        self.inside = threading.Semaphore(0)
        self.may_go = threading.Event()

    def __call__(self, environ: Environ, start_response: Start) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.paths.append(path)
        if path == "/long":
            threading.Event().wait(LONG)
        if path == "/wait":
            self.inside.release()
            assert self.may_go.wait(PATIENCE)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [self.name.encode()]

    def is_inside(self) -> bool:
        return self.inside.acquire(timeout=PATIENCE)


@pytest.fixture
def workers() -> Iterator[tuple[Worker, Worker]]:
    pair = Worker("one"), Worker("two")
    yield pair
    for worker in pair:
        worker.may_go.set()


def occupy(rig: Rig, worker: Worker, threads: int) -> list[Client]:
    """Put requests into the app in all threads of an engine, so that the watcher polls."""
    first = rig.client()
    assert first.get("/long").body == worker.name.encode()
    clients = [first, *(rig.client() for _ in range(threads - 1))]
    for client in clients:
        client.ask("/wait")
        assert worker.is_inside()
    until(lambda: rig.engine.leader.watcher_polls, "the watcher polls")
    return clients


# -- leaving ---------------------------------------------------------------------------------------------


@BOTH
def test_a_worker_that_leaves_hands_its_connections_off(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker], threads: int
) -> None:
    """Clients notice nothing: there is no `Connection: close`, and a sibling sends the next answer."""
    leaving, staying = (serve(worker, threads=threads, handoff=handoff) for worker in workers)
    clients = [leaving.client() for _ in range(20)]
    fresh = leaving.client()
    for client in clients:
        assert client.get().body == b"one"
    until(lambda: leaving.counts().opened == 21, "all are accepted")
    leaving.drain(hand_over=True)
    assert leaving.ended()
    for client in (*clients, fresh):
        answer = client.get()
        assert (answer.body, "connection" in answer.headers) == (b"two", False)
    # It has ended, so these numbers are final.
    assert (leaving.counts().handed_off, leaving.counts().closed) == (21, 0)
    assert (staying.counts().received, staying.counts().opened) == (21, 0)
    assert (leaving.counts().connections, staying.counts().connections) == (0, 21)


@BOTH
def test_a_request_on_its_way_is_answered_by_the_sibling(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker], threads: int
) -> None:
    """Bytes that were not read move with the connection; requests in the app get whole answers."""
    one, two = workers
    leaving, _ = serve(one, threads=threads, handoff=handoff), serve(two, threads=threads, handoff=handoff)
    old = [leaving.client() for _ in range(3)]
    for client in old:
        assert client.get().body == b"one"
    busy = occupy(leaving, one, threads)
    for client in old:
        client.ask()
    leaving.drain(hand_over=True)
    assert [client.answer().body for client in old] == [b"two"] * 3
    one.may_go.set()
    for client in busy:
        assert client.answer().body == b"one"
        assert client.get().body in (b"one", b"two")
    assert leaving.ended()


def test_half_a_request_stays(serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker]) -> None:
    """A connection whose request was read in part is not handed off before the answer."""
    leaving, _ = (serve(worker, handoff=handoff) for worker in workers)
    client = leaving.client()
    assert client.get().body == b"one"
    client.send(b"GET /half HTTP/1.1\r\nHo")
    other = leaving.client()
    assert other.get().body == b"one"  # served in a later pass, or in the same
    leaving.drain(hand_over=True)
    assert leaving.counts().connections >= 1
    client.send(b"st: x\r\n\r\n")
    assert client.answer().body == b"one"
    assert client.get().body == b"two"
    assert leaving.ended()


def test_an_answer_that_is_not_taken_stays(serve: Serve, handoff: HandOff) -> None:
    """The worker that leaves sends the rest of the answer; then it hands the connection off."""
    large = b"x" * (8 << 20)

    def one(_environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [])
        return [large]

    leaving, _ = serve(one, handoff=handoff), serve(Worker("two"), handoff=handoff)
    client = leaving.client(receive_buffer=4096)
    client.ask()
    client._more()
    leaving.drain(hand_over=True)
    assert leaving.counts().handed_off == 0
    assert client.answer().body == large
    assert client.get().body == b"two"
    assert leaving.ended()


@BOTH
def test_the_last_worker_hands_nothing_off(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker], threads: int
) -> None:
    """When all leave, late requests are answered by the same worker, with `Connection: close`."""
    one = workers[0]
    rig = serve(one, threads=threads, handoff=handoff)
    idle = rig.client()
    assert idle.get().body == b"one"
    busy = occupy(rig, one, threads)
    rig.drain()
    idle.ask("/late")
    one.may_go.set()
    answer = idle.answer()
    assert (answer.body, answer.headers["connection"]) == (b"one", "close")
    idle.close()
    for client in busy:
        assert client.answer().body == b"one"
        client.close()
    assert rig.ended()
    assert rig.counts().handed_off == 0


def test_what_no_sibling_has_received_is_received_back(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker]
) -> None:
    """A connection is in the hand-off when all workers begin to leave: its request is answered."""
    one = workers[0]
    rig = serve(one, handoff=handoff)
    idle = rig.client()
    assert idle.get().body == b"one"
    (busy,) = occupy(rig, one, 1)
    idle.ask("/late")
    until(lambda: rig.counts().handed_off == 1, "it is handed off")
    rig.drain()
    one.may_go.set()
    assert busy.answer().body == b"one"
    busy.close()
    answer = idle.answer()
    assert (answer.body, answer.headers["connection"]) == (b"one", "close")
    idle.close()
    assert rig.ended()


# -- a long request --------------------------------------------------------------------------------------


@BOTH
def test_what_would_wait_for_a_long_request_goes_to_a_sibling(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker], threads: int
) -> None:
    """A keep-alive connection of a busy worker is served by a free one."""
    one, two = workers
    busy, free = serve(one, threads=threads, handoff=handoff), serve(two, threads=threads, handoff=handoff)
    old = [busy.client() for _ in range(5)]
    for client in old:
        assert client.get().body == b"one"
    waiting = occupy(busy, one, threads)
    for client in old:
        assert client.get().body == b"two"
    # The sibling may have answered before this worker has counted.
    until(lambda: (busy.counts().handed_off, free.counts().received) == (5, 5), "all are counted")
    one.may_go.set()
    for client in waiting:
        assert client.answer().body == b"one"
    assert busy.log() == free.log() == ""


def test_without_a_free_sibling_it_is_served_in_the_end(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker]
) -> None:
    """The worker itself receives what it has handed off when it is free."""
    one = workers[0]
    rig = serve(one, handoff=handoff)
    old = rig.client()
    assert old.get().body == b"one"
    (busy,) = occupy(rig, one, 1)
    old.ask("/later")
    until(lambda: rig.counts().handed_off == 1, "it is handed off")
    assert "/later" not in one.paths
    one.may_go.set()
    assert busy.answer().body == b"one"
    assert old.answer().body == b"one"
    assert rig.counts().received == 1


def test_the_watcher_sends_and_receives(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker]
) -> None:
    """A body is received further during a long request; its connection stays in the worker."""
    one = workers[0]
    rig, _ = serve(one, handoff=handoff), serve(workers[1], handoff=handoff)
    writer = rig.client()
    writer.send(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
    (busy,) = occupy(rig, one, 1)
    writer.send(b"34")
    until(lambda: rig.engine._ready, "the request is received whole")
    assert "/body" not in one.paths
    one.may_go.set()
    assert busy.answer().body == b"one"
    assert writer.answer().body == b"one"


@BOTH
def test_nothing_is_lost_under_load(
    serve: Serve, handoff: HandOff, workers: tuple[Worker, Worker], threads: int
) -> None:
    """Clients send requests while workers are busy, leave and are added: each request has one answer."""
    one, two = workers
    first = serve(one, threads=threads, handoff=handoff)
    serve(two, threads=threads, handoff=handoff)
    wrong: list[object] = []
    asked = [0] * 6

    def visit(number: int) -> None:
        client = Client(first.address)
        try:
            for turn in range(60):
                target = "/long" if turn % 20 == number else f"/{number}/{turn}"
                if client.get(target).body not in (b"one", b"two"):
                    wrong.append(target)
                asked[number] += 1
        except Exception as error:
            wrong.append(error)
        finally:
            client.close()

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(6)]
    for visitor in visitors:
        visitor.start()
    until(lambda: min(asked) >= 10, "all have begun")
    first.drain(hand_over=True)
    for visitor in visitors:
        visitor.join(PATIENCE)
    assert first.ended()
    assert wrong == []
    assert len(one.paths) + len(two.paths) == sum(asked) == 360
    assert two.paths


# -- what may not travel, and how it travels -------------------------------------------------------------


class Pair:
    """A connection as the hand-off uses it, and its client's end."""

    tls = False
    listener = "('127.0.0.1', 80)"
    answered_at = 4711
    waiting_since = 4712
    peer_info: dict[str, str] | None = None

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.sock.close()


def test_what_is_known_is_sent_along(handoff: HandOff) -> None:
    """Listener, the proxy's peer info, the time of last use; the bytes, and the peer's address."""
    with Pair() as pair:
        pair.peer_info = {"REMOTE_ADDR": "192.0.2.1"}
        pair.client.send(b"unread")
        assert handoff.send(pair)
        taken = handoff.receive()
        assert taken is not None
        with taken.sock:
            assert (taken.listener, taken.peer_info) == (pair.listener, pair.peer_info)
            assert (taken.answered_at, taken.waiting_since) == (4711, 4712)
            assert taken.peer == pair.client.getsockname()
            assert taken.sock.recv(100) == b"unread"
        assert handoff.receive() is None


def test_a_received_connection_never_blocks(handoff: HandOff) -> None:
    """Even if an app has set a default time-out for sockets, one slow client must not block the loop."""
    with Pair() as pair:
        assert handoff.send(pair)
        socket.setdefaulttimeout(5.0)
        try:
            taken = handoff.receive()
        finally:
            socket.setdefaulttimeout(None)
        assert taken is not None
        with taken.sock:
            assert taken.sock.gettimeout() == 0


def test_a_received_connection_is_not_inherited(handoff: HandOff) -> None:
    """A program that the app starts does not get the client's connection."""
    with Pair() as pair:
        assert handoff.send(pair)
        taken = handoff.receive()
        assert taken is not None
        with taken.sock:
            assert not os.get_inheritable(taken.sock.fileno())


def test_a_client_that_has_gone_is_not_received(handoff: HandOff) -> None:
    """Its reset came while it was in the hand-off: nothing is received, and nothing stays open."""
    with Pair() as pair:
        assert handoff.send(pair)
        pair.sock.close()
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.client.close()
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert handoff.receive() is None
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_tls_does_not_travel(handoff: HandOff) -> None:
    """Its keys are in the memory of its process."""
    with Pair() as pair:
        pair.tls = True
        assert not handoff.send(pair)
        assert handoff.receive() is None


def test_a_listener_of_any_name_can_be_sent(handoff: HandOff) -> None:
    """A path that is not UTF-8 raises nothing: the connection is sent, or it stays."""
    with Pair() as pair:
        pair.listener = "/run/\udcff.sock"
        if handoff.send(pair):
            taken = handoff.receive()
            assert taken is not None
            taken.sock.close()


def test_a_full_handoff_refuses(handoff: HandOff) -> None:
    """Without a receiver, sending fails at some point and does not wait. All data sent can be received."""
    with Pair() as pair:
        given = 0
        while handoff.send(pair):
            given += 1
            assert given < 100_000
        assert given > 20
        taken = 0
        while (connection := handoff.receive()) is not None:
            connection.sock.close()
            taken += 1
        assert taken == given
        assert handoff.send(pair)
        last = handoff.receive()
        assert last is not None
        last.sock.close()


GONE = """
import socket, sys
sys.path.insert(0, ".")
from tests.unit.workers.test_handoff import Pair
from ostler.workers.handoff import HandOff

sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
handoff = HandOff(sending, receiving)
receiving.close()
with Pair() as pair:
    print(handoff.send(pair))
"""


def test_a_handoff_whose_other_end_is_gone_refuses() -> None:
    """The pair ended with its daemon: no exception, and no SIGPIPE."""
    result = subprocess.run(
        [sys.executable, "-c", GONE], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (result.returncode, result.stdout) == (0, "False\n")


def test_an_overloaded_worker_shares(serve: Serve, handoff: HandOff) -> None:
    """Connections that stay open reach a worker that was added later:
    of many that wait at once some are handed off.
    """
    inside, gate = threading.Semaphore(0), threading.Semaphore(0)

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            inside.release()
            assert gate.acquire(timeout=PATIENCE)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    first = serve(app, handoff=handoff)
    clients = [first.client() for _ in range(16)]
    for client in clients:
        assert client.get("/").body == b"ok"
    second = serve(app, handoff=handoff)

    def shared() -> bool:
        clients[0].ask("/wait")
        assert inside.acquire(timeout=PATIENCE)
        for client in clients[1:]:
            client.ask("/")  # all have requests when the first worker polls again
        gate.release()
        for client in clients:
            assert client.answer().body == b"ok"
        # The worker that polls first receives it, which may be the sender itself, so this is repeated.
        return second.counts().received > 0

    until(shared, "the second worker has taken a connection")
    assert first.counts().handed_off > 0


# -- a sibling whose app is hostile ------------------------------------------------------------------------


def datagram(*fields: object) -> bytes:
    return msgspec.msgpack.encode(fields or [os.getpid(), "x", {}, 0])


@pytest.fixture
def ends() -> Iterator[tuple[HandOff, socket.socket]]:
    """A hand-off, and the end into which a sibling sends."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sending, receiving:
        yield HandOff(sending, receiving), sending


def test_other_things_than_connections(ends: tuple[HandOff, socket.socket]) -> None:
    """Anything else is closed, and a connection after it is received."""
    handoff, sibling = ends
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.connect(("127.0.0.1", 9))
        gc.collect()  # sockets of other tests
        before = len(list(Path("/proc/self/fd").iterdir()))
        sent = (
            (b"\xff", [client.fileno()]),
            (b"", [client.fileno()]),
            (b"", []),
            (b"\x91" * 4000, [client.fileno()]),
            (b"x" * 60000, [client.fileno()]),
            (datagram(), []),
            (datagram(), [0]),
            (datagram(), [listener.fileno()]),
            (datagram(), [datagrams.fileno()]),
            (datagram(), [client.fileno()] * 253),
            (datagram(1, "x", {"wsgi.input": "y"}, 0), [client.fileno()]),
            (datagram(1, "x", {"REMOTE_ADDR": "1\r\n"}, 0), [client.fileno()]),
            (datagram(1, "x", {}, -1), [client.fileno()]),
            (datagram(1, "\ud800".encode("utf-8", "surrogatepass"), {}, 0), [client.fileno()]),
        )
        for data, descriptors in sent:
            if descriptors:
                socket.send_fds(sibling, [data], descriptors)
            else:
                sibling.send(data)
        socket.send_fds(sibling, [datagram(1, "x", {}, 2**64 - 1)], [client.fileno()])
        taken = handoff.receive()
        assert taken is not None
        assert taken.peer == listener.getsockname()
        assert taken.answered_at < 2**63
        taken.sock.close()
        assert handoff.receive() is None
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_garbage_without_end(ends: tuple[HandOff, socket.socket]) -> None:
    """Only some of it is read, and the result says that reading more is useless."""
    handoff, sibling = ends
    for _ in range(100):
        sibling.send(b"x")
    assert handoff.receive() is None
    assert handoff.only_invalid_received


def test_a_pair_that_was_shut_down(ends: tuple[HandOff, socket.socket]) -> None:
    """It can be read endlessly, and the result says that this is useless."""
    handoff, sibling = ends
    sibling.shutdown(socket.SHUT_RDWR)
    assert handoff.receive() is None
    assert handoff.only_invalid_received


@dataclass
class Idle:
    fd: int
    tls: bool = False
    listener: str = "x"
    peer_info: dict[str, str] | None = None
    answered_at: int = 0
    waiting_since: int = 0


def test_a_pair_that_blocks(ends: tuple[HandOff, socket.socket]) -> None:
    """A sibling can fill the shared sockets and make them block: nothing is handed off, no worker waits."""
    handoff, sibling = ends
    sibling.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sibling.send(b"x" * 1000)
    sibling.setblocking(True)
    assert not handoff.send(Idle(0))


def test_close_that_would_wait(ends: tuple[HandOff, socket.socket]) -> None:
    """A connection with SO_LINGER does not make its receiver wait when it is closed."""
    handoff, sibling = ends
    ours, theirs = lingering()
    socket.send_fds(sibling, [datagram()], [ours.fileno()])
    ours.detach()
    taken = handoff.receive()
    assert taken is not None
    began = time.monotonic()
    taken.sock.close()
    assert time.monotonic() - began < 30
    theirs.close()
