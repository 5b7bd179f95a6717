"""A connection's phases: the legal transitions, and the meaning of each phase."""

import itertools

import pytest

from ostler.workers.phase import (
    CLOSED,
    CLOSING,
    LINGERING,
    OPEN,
    PROXY_HEADER,
    TRANSITIONS,
    UPGRADED,
    IllegalPhaseChange,
    Phase,
)
from tests.unit.workers.pieces import GET, Pieces

LEGAL = {
    (PROXY_HEADER, OPEN),
    (PROXY_HEADER, CLOSING),
    (PROXY_HEADER, CLOSED),
    (OPEN, UPGRADED),
    (UPGRADED, LINGERING),
    (UPGRADED, CLOSED),
    (OPEN, CLOSING),
    (OPEN, CLOSED),
    (CLOSING, LINGERING),
    (CLOSING, CLOSED),
    (LINGERING, CLOSED),
}


@pytest.mark.parametrize(("before", "after"), [*itertools.product(Phase, Phase)])
def test_transitions(pieces: Pieces, before: Phase, after: Phase) -> None:
    """The legal ones are made; each other one is refused and changes nothing."""
    connection, _ = pieces.connect()
    connection.phase = before
    if (before, after) in LEGAL:
        connection.enter(after)
        assert connection.phase is after
    else:
        with pytest.raises(IllegalPhaseChange, match=before.name):
            connection.enter(after)
        assert connection.phase is before
    connection.phase = OPEN


def test_each_phase_has_its_transitions() -> None:
    """Nothing follows CLOSED, and each phase can end."""
    assert set(TRANSITIONS) == set(Phase)
    assert TRANSITIONS[CLOSED] == set()
    assert all(CLOSED in following for phase, following in TRANSITIONS.items() if phase is not CLOSED)


def test_what_goes_to_the_parser(pieces: Pieces) -> None:
    """Bytes of a plain connection are parsed, but not before its PROXY header or after its last answer."""
    plain, _ = pieces.connect()
    proxied, _ = pieces.connect(proxied=True)
    assert (plain.direct, plain.phase) == (True, OPEN)
    assert (proxied.direct, proxied.phase) == (False, PROXY_HEADER)
    proxied.enter(OPEN)
    assert proxied.direct
    plain.enter(CLOSING)
    plain.enter(LINGERING)
    assert not plain.direct


def test_idle(pieces: Pieces) -> None:
    """Between two requests; not during a request, before its answer is sent,
    or when the connection is about to end.
    """
    connection, client = pieces.connect()
    assert connection.is_idle
    client.sendall(GET[:10])
    pieces.receive(connection)
    assert not connection.is_idle
    client.sendall(GET[10:])
    pieces.receive(connection)
    assert not connection.is_idle
    connection.parser.requests.clear()
    assert connection.is_idle
    connection.enter(CLOSING)
    assert not connection.is_idle
    proxied, _ = pieces.connect(proxied=True)
    assert proxied.is_unprepared
    assert not proxied.is_idle
