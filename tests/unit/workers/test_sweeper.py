"""The sweeper: time-outs of connections, some connections per pass, and the steps of draining."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ostler.workers.connection import Connection
from ostler.workers.drain import DrainState
from ostler.workers.handoff import HandOff
from ostler.workers.phase import CLOSED, CLOSING, LINGERING, OPEN
from tests.unit.workers.pieces import GET, SECOND, Pieces, received

Make = Callable[..., Pieces]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Pieces] = []

    def make(**options: Any) -> Pieces:
        made.append(Pieces(tmp_path, **options))
        return made[-1]

    yield make
    for pieces in made:
        pieces.__exit__(None, None, None)


def phase_after(pieces: Pieces, connection: Connection, seconds: float) -> Any:
    """The connection's phase when it is checked this long after its last byte."""
    pieces.parts.sweeper.remaining = [connection]
    pieces.parts.sweeper.sweep(connection.idle_since + int(seconds * SECOND), pieces.slot)
    return connection.phase


def test_an_idle_connection(make: Make) -> None:
    """It is closed after `keepalive`; one without a first request has at least five seconds."""
    pieces = make(keepalive=2.0)
    used, _ = pieces.connect()
    used.answered_at = 1
    assert phase_after(pieces, used, 1.9) is OPEN
    assert phase_after(pieces, used, 2.1) is CLOSED
    fresh, _ = pieces.connect()
    assert phase_after(pieces, fresh, 4.9) is OPEN
    assert phase_after(pieces, fresh, 5.1) is CLOSED


def test_a_request_in_the_very_moment(make: Make) -> None:
    """Bytes that have arrived and were not read yet keep a connection open."""
    pieces = make(keepalive=2.0)
    connection, client = pieces.connect()
    client.sendall(GET)
    assert phase_after(pieces, connection, 60) is OPEN


def test_a_slow_request(make: Make) -> None:
    """408 after `header_timeout`, and the end without a reset."""
    pieces = make(header_timeout=10.0)
    connection, client = pieces.connect()
    client.sendall(GET[:20])
    pieces.receive(connection)
    assert phase_after(pieces, connection, 9.9) is OPEN
    assert phase_after(pieces, connection, 10.1) is LINGERING
    assert received(client).startswith(b"HTTP/1.1 408 ")
    assert pieces.counts().statuses[4] == 1


def test_an_answer_that_is_not_taken(make: Make) -> None:
    """It is cut after a minute in which the client has read nothing."""
    pieces = make()
    connection, _ = pieces.connect()
    connection.send(b"x" * (8 << 20))
    assert phase_after(pieces, connection, 59) is OPEN
    assert phase_after(pieces, connection, 61) is CLOSED


def test_an_answer_that_is_taken_slowly(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has read anything within a minute is left alone, although the kernel reports no room."""
    taken = 0
    monkeypatch.setattr("ostler.workers.connection.bytes_acked", lambda _sock: taken)
    pieces = make()
    connection, _ = pieces.connect()
    connection.send(b"x" * (8 << 20))
    for minutes in range(1, 4):
        taken += 1
        assert phase_after(pieces, connection, 61) is OPEN, f"after {minutes} minutes"
    assert phase_after(pieces, connection, 61) is CLOSED


def test_a_client_that_does_not_close(make: Make) -> None:
    """A lingering connection is closed after two seconds."""
    pieces = make()
    connection, _ = pieces.connect()
    connection.enter(CLOSING)
    pieces.parts.table.linger(connection, pieces.slot)
    assert phase_after(pieces, connection, 1.9) is LINGERING
    assert phase_after(pieces, connection, 2.1) is CLOSED


def test_connections_of_other_threads(make: Make) -> None:
    """A connection that a thread serves is not checked."""
    pieces = make()
    connection, _ = pieces.connect()
    pieces.reactor.unwatch(connection)
    assert phase_after(pieces, connection, 1000) is OPEN


def test_idle_connections_keep_little(make: Make) -> None:
    """Caches for the next request are dropped after a second."""
    pieces = make(keepalive=60.0)
    connection, client = pieces.connect()
    client.sendall(GET)
    assert pieces.receive(connection)
    pieces.parts.runner.run(connection, pieces.slot, 1 << 62)
    assert connection.template is not None
    phase_after(pieces, connection, 0.9)
    assert connection.template is not None
    phase_after(pieces, connection, 1.1)
    assert connection.template is None


def test_a_slice_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections are checked in several passes; the next sweep begins a second later."""
    monkeypatch.setattr("ostler.workers.sweeper._SLICE", 2)
    pieces = make(keepalive=2.0)
    sweeper = pieces.parts.sweeper
    for _ in range(5):
        pieces.connect()
    now = pieces.reactor.read_clock() + 60 * SECOND
    left = []
    for _ in range(3):
        sweeper.sweep(now, pieces.slot)
        left.append((len(sweeper.remaining), len(pieces.parts.table.open)))
    assert left == [(3, 3), (1, 1), (0, 0)]
    assert sweeper.due == now + SECOND


# -- draining --------------------------------------------------------------------------------------------


def test_draining(make: Make) -> None:
    """Answers end their connections; idle ones have half a second; all are checked in each pass."""
    pieces = make(keepalive=60.0)
    idle, _ = pieces.connect()
    busy, client = pieces.connect()
    pieces.parts.drain.ask(False, None)
    pieces.parts.sweeper.sweep(pieces.reactor.read_clock(), pieces.slot)
    began = pieces.parts.drain.began
    assert not pieces.parts.acceptor.accepting
    client.sendall(GET)
    assert pieces.receive(busy)
    pieces.parts.runner.run(busy, pieces.slot, 1 << 62)
    assert b"Connection: close" in received(client)
    pieces.parts.sweeper.sweep(began + SECOND // 2 - 1, pieces.slot)
    assert idle.phase is OPEN
    pieces.parts.sweeper.sweep(began + SECOND // 2 + 1, pieces.slot)
    assert idle.phase is CLOSED


def test_draining_beside_siblings(make: Make, handoff: HandOff) -> None:
    """Idle connections are handed off, and answers leave connections open."""
    pieces = make(handoff=handoff)
    idle, _ = pieces.connect()
    half, client = pieces.connect()
    client.sendall(GET[:10])
    pieces.receive(half)
    pieces.parts.drain.ask(True, None)
    pieces.parts.sweeper.sweep(pieces.reactor.read_clock(), pieces.slot)
    assert (idle.phase, half.phase) == (CLOSED, OPEN)
    assert pieces.counts().handed_off == 1
    assert pieces.parts.runner.keep_connections


def test_draining_with_all_siblings(make: Make, handoff: HandOff) -> None:
    """A connection that one of them has handed off before is received,
    because no other worker would serve it.
    """
    pieces = make(handoff=handoff)
    connection, client = pieces.connect()
    assert pieces.parts.siblings.hand_off(connection, pieces.slot)
    client.sendall(GET)
    pieces.parts.drain.ask(False, None)
    pieces.parts.sweeper.sweep(pieces.reactor.read_clock(), pieces.slot)
    (found,) = pieces.parts.table.open.values()
    assert found.watched
    assert found.fd in dict(pieces.reactor.poll(1.0))


@pytest.mark.parametrize(("seconds", "expected"), [(None, 30), (2.5, 2.5), (100.0, 100)])
def test_the_time_that_draining_may_take(seconds: float | None, expected: float) -> None:
    """That of the drain message, or else of the setting; it counts from when the loop has noticed."""
    drain = DrainState(30.0, can_hand_off=True)
    drain.ask(True, seconds)
    assert (drain.asked, drain.hand_over, drain.deadline) == (True, True, None)
    assert not drain.is_over(1 << 62)
    assert drain.begin()
    assert drain.deadline == drain.began + int(expected * SECOND)
    assert not drain.begin()
    assert not drain.is_over(drain.deadline - 1)
    assert drain.is_over(drain.deadline)


def test_a_second_message(make: Make) -> None:
    """It may shorten the time of a worker that already drains; without a time it does not change it."""
    drain = DrainState(30.0, can_hand_off=False)
    drain.ask(True, 20.0)
    assert not drain.hand_over, "there is no sibling"
    drain.begin()
    drain.ask(False, None)
    assert drain.deadline == drain.began + 20 * SECOND
    before = time.monotonic_ns()
    drain.ask(False, 1.0)
    assert before + SECOND <= drain.deadline <= time.monotonic_ns() + SECOND
