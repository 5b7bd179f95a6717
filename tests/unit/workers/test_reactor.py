"""The reactor: events of watched descriptors are reported, and only to the thread that they belong to."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ostler.osapi.wake import Wake
from ostler.workers.reactor import IN, OUT, Reactor
from tests.unit.workers.pieces import GET, Pieces


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor(Wake())
    yield reactor
    reactor.close()


def test_a_reader(reactor: Reactor) -> None:
    """Its callback is called for its events until it is removed;
    events of an unknown descriptor are ignored.
    """
    reading, writing = os.pipe()
    called: list[bytes] = []
    reactor.add_reader(reading, lambda: called.append(os.read(reading, 10)))
    os.write(writing, b"x")
    ((fd, _),) = reactor.poll(1.0)
    reactor.call_back(fd)
    assert called == [b"x"]
    os.write(writing, b"y")
    reactor.remove_reader(reading)
    assert reactor.poll(0.0) == []
    reactor.call_back(reading)
    assert called == [b"x"]
    os.close(reading)
    os.close(writing)


def test_waking(reactor: Reactor) -> None:
    """Another thread ends the wait; after the wake-up was handled there is none pending."""
    thread = threading.Thread(target=reactor.wake)
    thread.start()
    ((fd, _),) = reactor.poll(10.0)
    thread.join()
    reactor.call_back(fd)
    assert reactor.poll(0.0) == []


def test_the_clock(reactor: Reactor) -> None:
    """`now` is the time of the last poll."""
    before = time.monotonic_ns()
    reactor.poll(0.0)
    assert before <= reactor.now <= time.monotonic_ns()
    looked = reactor.now
    assert looked <= reactor.read_clock() == reactor.now


def test_shared_descriptors(reactor: Reactor) -> None:
    """A listener is reported while it is watched; removing a closed one is not an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        reactor.add_shared(fd)
        with socket.create_connection(listener.getsockname()):
            assert reactor.poll(1.0) == [(fd, IN)]
            reactor.remove(fd)
            assert reactor.poll(0.0) == []
    reactor.add_shared(fd)
    reactor.remove(fd)


def test_descriptors(reactor: Reactor) -> None:
    """All descriptors that `close` closes, for the audit of a worker that becomes a zygote."""
    assert reactor.fileno() in reactor.descriptors()
    assert len(reactor.descriptors()) >= 2


def test_a_connection_is_watched_for_what_it_needs(pieces: Pieces) -> None:
    """For requests, and while there is output for room to send. A closed one is not watched."""
    connection, client = pieces.connect()
    assert (connection.mask, connection.watched) == (IN, True)
    client.sendall(GET)
    assert pieces.reactor.poll(1.0) == [(connection.fd, IN)]
    connection.send(b"x" * (8 << 20))
    assert connection.output
    pieces.reactor.watch(connection)
    assert connection.mask == OUT
    pieces.parts.table.close(connection, pieces.slot)
    pieces.reactor.watch(connection)
    assert pieces.reactor.poll(0.0) == []


def test_a_connection_that_a_thread_serves(pieces: Pieces) -> None:
    """It is not reported until it is watched again: the polling thread must not touch it."""
    connection, client = pieces.connect()
    pieces.reactor.unwatch(connection)
    assert not connection.watched
    client.sendall(GET)
    assert pieces.reactor.poll(0.0) == []
    pieces.reactor.watch(connection)
    assert connection.watched
    assert pieces.reactor.poll(1.0) == [(connection.fd, IN)]


def test_a_connection_that_closes_while_it_is_unwatched(pieces: Pieces) -> None:
    """Its thread has closed it first, which is not an error."""
    connection, _ = pieces.connect()
    pieces.parts.table.close(connection, pieces.slot)
    pieces.reactor.unwatch(connection)


def test_waiting_for_an_event_of_ones_own(pieces: Pieces) -> None:
    """`watch_for` reports an event while the connection stays the caller's."""
    connection, _ = pieces.connect()
    pieces.reactor.unwatch(connection)
    pieces.reactor.watch_for(connection, select.EPOLLOUT)
    assert not connection.watched
    assert pieces.reactor.poll(1.0) == [(connection.fd, OUT)]
