"""Handing connections off to siblings: which ones, and how often."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ostler.workers.handoff import HandOff
from ostler.workers.phase import CLOSED, OPEN
from tests.unit.workers.pieces import GET, SECOND, Pieces


@pytest.fixture
def pieces(tmp_path: Path, handoff: HandOff) -> Iterator[Pieces]:
    with Pieces(tmp_path, handoff=handoff) as pieces:
        yield pieces


def test_only_idle_connections(pieces: Pieces) -> None:
    """One whose request has begun, or is not answered yet, stays."""
    siblings = pieces.parts.siblings
    connection, client = pieces.connect()
    client.sendall(GET[:10])
    pieces.receive(connection)
    assert not siblings.hand_off(connection, pieces.slot)
    client.sendall(GET[10:])
    assert pieces.receive(connection)
    assert not siblings.hand_off(connection, pieces.slot)
    assert connection.phase is OPEN
    connection.parser.requests.clear()
    assert siblings.hand_off(connection, pieces.slot)
    assert connection.phase is CLOSED


def test_without_siblings(tmp_path: Path) -> None:
    """Nothing is handed off."""
    with Pieces(tmp_path) as pieces:
        connection, _ = pieces.connect()
        assert not pieces.parts.siblings
        assert not pieces.parts.siblings.hand_off(connection, pieces.slot)


def test_a_busy_worker(pieces: Pieces) -> None:
    """It hands off waiting connections, also while it drains and others stay; not when all leave."""
    siblings, drain = pieces.parts.siblings, pieces.parts.drain
    for hand_over, expected in ((None, True), (True, True), (False, False)):
        if hand_over is not None:
            drain.ask(hand_over, None)
        connection, _ = pieces.connect()
        assert siblings.hand_off_waiting(connection, pieces.slot) is expected


def test_sharing_comes_more_seldom_when_no_sibling_has_time(pieces: Pieces) -> None:
    """Each connection that comes back doubles the pause; one that a sibling receives halves it."""
    siblings = pieces.parts.siblings
    now = 100 * SECOND
    pauses = []
    for _ in range(8):
        connection, _ = pieces.connect()
        assert siblings.share(connection, pieces.slot, now)
        pauses.append((siblings.share_due - now) // 1_000_000)
        found = siblings.receive()  # received by this worker itself
        assert found is not None
        assert found.returned
        found.sock.close()
    assert pauses == [10, 20, 40, 80, 160, 250, 250, 250]
    for expected in (250, 125, 62, 31):
        connection, _ = pieces.connect()
        assert siblings.share(connection, pieces.slot, now)
        assert (siblings.share_due - now) // 1_000_000 == expected


def test_what_is_not_shared(pieces: Pieces) -> None:
    """Events of other descriptors, and a connection that a thread serves."""
    siblings = pieces.parts.siblings
    assert not siblings.share(None, pieces.slot, 0)
    connection, _ = pieces.connect()
    pieces.reactor.unwatch(connection)
    assert not siblings.share(connection, pieces.slot, 0)
    assert siblings.share_due > 0, "the next attempt comes later"
