"""The table of connections: limits, and the three ways in which a connection ends."""

import socket
from pathlib import Path

import pytest

from ostler.workers.phase import CLOSED, LINGERING
from tests.unit.workers.pieces import GET, Pieces, received


def test_connections_of_one_address(tmp_path: Path) -> None:
    """One too many is closed at once and counted; when one ends another is accepted;
    without an address there is no limit.
    """
    with Pieces(tmp_path, limit_connections_per_address=1) as pieces:
        table = pieces.parts.table
        first, _ = pieces.connect()
        ours, theirs = socket.socketpair()
        with theirs:
            beyond = pieces.parts.factory.make(ours, "", ("192.0.2.1", 1))
            pieces.slot.connection_opened()
            assert not table.add(beyond, "192.0.2.1", pieces.slot)
            assert beyond.phase is CLOSED
            assert theirs.recv(1) == b""
        assert table.count_address(first, "")
        table.close(first, pieces.slot)
        pieces.connect()
        assert (pieces.counts().opened, pieces.counts().closed) == (3, 2)
        assert pieces.log().count("too_many_connections") == 1


def test_full(tmp_path: Path) -> None:
    """At most as many connections as `worker_connections`."""
    with Pieces(tmp_path, worker_connections=2) as pieces:
        pieces.connect()
        assert not pieces.parts.table.is_full
        connection, _ = pieces.connect()
        assert pieces.parts.table.is_full
        pieces.parts.table.close(connection, pieces.slot)
        assert not pieces.parts.table.is_full


def test_closing(pieces: Pieces) -> None:
    """The client sees the end; a second close does nothing; table and reactor drop the descriptor."""
    connection, client = pieces.connect()
    for _ in range(2):
        pieces.parts.table.close(connection, pieces.slot)
    assert client.recv(1) == b""
    assert pieces.counts().closed == 1
    assert pieces.parts.table.open == {}
    assert pieces.reactor.poll(0.0) == []


@pytest.mark.parametrize(("unexpected", "phase"), [(False, CLOSED), (True, LINGERING)])
def test_the_end_behind_an_answer(pieces: Pieces, unexpected: bool, phase: object) -> None:
    """A client that did not ask for the end may still send, and that must not cause a reset."""
    connection, client = pieces.connect()
    connection.send(b"answer")
    pieces.parts.table.end(connection, unexpected, pieces.slot)
    assert connection.phase is phase
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b""
    if unexpected:
        client.sendall(GET)
        assert not pieces.receive(connection)
        client.shutdown(socket.SHUT_WR)
        assert not pieces.receive(connection)
    assert connection.phase is CLOSED


def test_the_end_behind_an_answer_that_is_not_taken(pieces: Pieces) -> None:
    """The connection ends when the client has read all of it."""
    connection, client = pieces.connect()
    size = 4 << 20
    connection.send(b"x" * size)
    pieces.parts.table.end(connection, True, pieces.slot)
    got = 0
    while connection.output:
        got += len(received(client))
        assert not pieces.receive(connection)
    assert connection.phase is LINGERING
    assert got + len(received(client)) == size


def test_a_connection_that_was_handed_off(pieces: Pieces) -> None:
    """Our copy is closed without sending anything: the connection continues elsewhere.
    It does not count as closed.
    """
    connection, client = pieces.connect()
    with connection.sock.dup() as elsewhere:
        pieces.parts.table.close_handed_off(connection, pieces.slot)
        elsewhere.send(b"still there")
        assert client.recv(100) == b"still there"
    assert (pieces.counts().closed, pieces.counts().handed_off) == (0, 1)
    assert pieces.parts.table.open == {}
