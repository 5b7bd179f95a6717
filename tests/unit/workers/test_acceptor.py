"""Accepting: one connection at a time, not while the worker is full, pauses or drains, and again then."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ostler.workers import eviction
from ostler.workers.handoff import HandOff
from ostler.workers.phase import CLOSED, PROXY_HEADER
from tests.unit.workers.pieces import GET, PEER, SECOND, Pieces
from tests.unit.workers.rig import Listener

Make = Callable[..., Pieces]


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener
        for sock in listener.accepted:
            sock.close()


@pytest.fixture
def make(tmp_path: Path, listener: Listener) -> Iterator[Make]:
    """Pieces with a listener, accepting."""
    made: list[Pieces] = []

    def make(**options: Any) -> Pieces:
        made.append(Pieces(tmp_path, listeners=[listener], **options))
        made[-1].parts.acceptor.start()
        return made[-1]

    yield make
    for pieces in made:
        pieces.__exit__(None, None, None)


def client(listener: Listener) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=5.0)


def test_one_at_a_time(make: Make, listener: Listener) -> None:
    """Each call accepts one; the listener stays watched; without clients nothing is accepted."""
    pieces = make()
    fd = listener.fileno()
    with client(listener) as one, client(listener):
        first = pieces.parts.acceptor.accept(fd, pieces.slot, 0)
        assert first is not None
        assert first.peer == one.getsockname()
        assert pieces.reactor.poll(1.0)[0][0] == fd
        assert pieces.parts.acceptor.accept(fd, pieces.slot, 0) is not None
        assert pieces.parts.acceptor.accept(fd, pieces.slot, 0) is None
    assert pieces.counts().opened == len(pieces.parts.table.open) == 2
    assert pieces.log() == ""


def test_stopping(make: Make, listener: Listener) -> None:
    """New connections are left to siblings; accepting can start again, but not while the worker drains."""
    pieces = make()
    acceptor = pieces.parts.acceptor
    with client(listener):
        acceptor.stop()
        assert pieces.reactor.poll(0.0) == []
        assert acceptor.accept(listener.fileno(), pieces.slot, 0) is None
        acceptor.try_start(pieces.slot, 0)
        assert acceptor.accepting
        acceptor.stop()
        pieces.parts.drain.ask(False, None)
        acceptor.try_start(pieces.slot, 0)
        assert not acceptor.accepting


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_out_of_descriptors(make: Make, listener: Listener, number: int) -> None:
    """It pauses for a second, which is logged once; if a connection can be evicted it does not pause."""
    pieces = make()
    acceptor = pieces.parts.acceptor
    listener.errors.append(OSError(number, os.strerror(number)))
    assert acceptor.accept(listener.fileno(), pieces.slot, 10 * SECOND) is None
    assert not acceptor.accepting
    acceptor.try_start(pieces.slot, 11 * SECOND - 1)
    assert not acceptor.accepting
    acceptor.try_start(pieces.slot, 11 * SECOND)
    assert acceptor.accepting
    assert pieces.log().count("accept_paused") == 1
    idle, _ = pieces.connect()
    idle.answered_at = 1
    listener.errors.append(OSError(number, os.strerror(number)))
    assert acceptor.accept(listener.fileno(), pieces.slot, 20 * SECOND) is None
    assert acceptor.accepting
    assert idle.phase is CLOSED


def test_full(make: Make, listener: Listener) -> None:
    """When the last place is taken it stops, unless an idle connection can be closed for the next one."""
    pieces = make(worker_connections=2)
    acceptor = pieces.parts.acceptor
    with client(listener), client(listener), client(listener):
        first = acceptor.accept(listener.fileno(), pieces.slot, 0)
        assert first is not None
        first.answered_at = 1
        assert acceptor.accept(listener.fileno(), pieces.slot, 0) is not None
        assert first.phase is CLOSED
        assert acceptor.accepting
        assert acceptor.accept(listener.fileno(), pieces.slot, 0) is not None
        assert not acceptor.accepting
        assert acceptor.waits_for_room


def test_a_full_worker_makes_room_for_clients_that_wait(make: Make, listener: Listener) -> None:
    """A connection is closed at the second look that finds clients waiting:
    after the first a sibling may still accept them.
    """
    pieces = make(worker_connections=1)
    acceptor = pieces.parts.acceptor
    with client(listener) as slow:
        slow.sendall(GET[:10])
        connection = acceptor.accept(listener.fileno(), pieces.slot, 0)
        assert connection is not None
        pieces.receive(connection)
        assert not acceptor.accepting
        now = connection.idle_since + 10 * SECOND
        with client(listener):
            acceptor.try_start(pieces.slot, now)
            assert not acceptor.accepting
            acceptor.try_start(pieces.slot, now + 1)
            assert not acceptor.accepting, "that is too soon for a second look"
            acceptor.try_start(pieces.slot, now + SECOND // 10)
            assert acceptor.accepting
        assert connection.phase is CLOSED
        assert acceptor.arrivals_in_a_pass(1, now + SECOND // 5) > 1
        assert acceptor.arrivals_in_a_pass(1, now + 5 * SECOND) == 1
        assert "connections_evicted" in pieces.log()


def test_a_proxy(make: Make, listener: Listener) -> None:
    """A connection of a proxy begins with its header, and counts for its client's address only afterwards."""
    pieces = make(proxy_protocol="auto", limit_connections_per_address=1)
    with client(listener) as one, client(listener):
        for _ in range(2):
            connection = pieces.parts.acceptor.accept(listener.fileno(), pieces.slot, 0)
            assert connection is not None
            assert connection.phase is PROXY_HEADER
            assert connection.address is None
        first = next(iter(pieces.parts.table.open.values()))
        one.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.9 1 2\r\n" + GET)
        assert pieces.receive(first)
        assert first.address == "192.0.2.7"
        assert first.peer_info is not None
        assert first.peer_info["REMOTE_ADDR"] == "192.0.2.7"


def test_from_a_sibling(make: Make, handoff: HandOff) -> None:
    """A connection from a sibling is in the table with its peer info, and counts as received."""
    pieces = make(handoff=handoff)
    connection, client = pieces.connect()
    connection.peer_info = {"REMOTE_ADDR": "192.0.2.7"}
    connection.answered_at = 4711
    assert pieces.parts.siblings.hand_off(connection, pieces.slot)
    client.sendall(GET)
    found = pieces.parts.acceptor.accept(handoff.fileno(), pieces.slot, 0)
    assert found is not None
    assert found is not connection
    assert (found.peer_info, found.answered_at) == ({"REMOTE_ADDR": "192.0.2.7"}, 4711)
    assert pieces.receive(found)
    assert (pieces.counts().handed_off, pieces.counts().received) == (1, 1)
    assert pieces.parts.acceptor.accept(handoff.fileno(), pieces.slot, 0) is None


def test_siblings_that_send_nonsense(make: Make, listener: Listener) -> None:
    """Receiving from them pauses, and one line reports it; listeners are not affected."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sending, receiving:
        pieces = make(handoff=HandOff(sending, receiving))
        acceptor = pieces.parts.acceptor
        both = (receiving.fileno(), listener.fileno())
        for _ in range(2):
            for _ in range(16):
                sending.send(b"nonsense")
            assert acceptor.sources == both
            assert acceptor.accept(receiving.fileno(), pieces.slot, 0) is None
            assert acceptor.sources == (listener.fileno(),)
            acceptor.try_resume_siblings(time.monotonic_ns())
            assert acceptor.sources == (listener.fileno(),)
            acceptor.try_resume_siblings(time.monotonic_ns() + 2 * SECOND)
        assert acceptor.sources == both
        assert pieces.log().count("hand_off_paused") == 1


def test_closing_the_listeners(make: Make, listener: Listener) -> None:
    """Another daemon may bind the address at once."""
    pieces = make()
    address = listener.getsockname()
    pieces.parts.acceptor.close_listeners()
    with socket.create_server(address):
        pass


def test_ranks_are_in_order() -> None:
    """What is closed first has the lowest rank."""
    assert eviction.ENDED < eviction.IDLE < eviction.SLOW < eviction.MOVING


def test_a_connection_that_is_handed_off_to_a_full_worker(tmp_path: Path) -> None:
    """It is not closed to make room, although it is idle, because its client would lose it."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handoff = HandOff(*ends)
    ours, theirs = socket.socketpair()
    with ends[0], ends[1], ours, theirs, Pieces(tmp_path, handoff=handoff) as pieces:
        pieces.parts.table.most = 2
        in_app, _ = pieces.connect()
        in_app.watched = False
        idle = pieces.parts.factory.make(ours, "", PEER)
        idle.answered_at = time.monotonic_ns() - SECOND
        assert handoff.send(idle)
        pieces.parts.acceptor.start()
        received = pieces.parts.acceptor.receive(pieces.slot)
        assert received is not None
        assert received.answered_at == idle.answered_at
        assert len(pieces.parts.table.open) == 2
