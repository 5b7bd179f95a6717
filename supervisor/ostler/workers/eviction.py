"""Which connections make room when a worker is full.

A client that opens connections and sends little on them, or reads little of its answers, would keep others
out for as long as the time-outs allow. So the connections that are worth least make room, in this order:

1. those whose last answer was sent, and which wait only for the client to close (`lingering`);
2. idle ones between two requests, the longest idle first;
3. those that have sent least for longest: heads and bodies that are incomplete, handshakes, connections
   without a first request; and those that have read least of an answer for longest;
4. bodies and answers that move at `body_min_rate` or faster, only if there is nothing else.

A connection whose request is in the app, or waits for a thread, is never among them.
"""

from collections.abc import Iterable
from math import inf

from ostler.workers.connection import Connection, bytes_acked

_SECOND = 1_000_000_000
# What a connection has to its credit from the beginning (bytes): one that has just been made is no slow one.
HEAD_START = 1000
# A body or an answer moves if it does so in its first second (ns) already, or has by then.
SHOWN = _SECOND
# A connection that is younger (ns) has its chance to send a request, or to go on with its handshake:
# otherwise those that attackers open again as fast as they are cut would leave it no time.
YOUTH = _SECOND // 5
# An answer that was sent has this long (ns) to arrive before its connection may be closed.
_ARRIVED = _SECOND // 4
# For ranking, where `body_min_rate` is 0.
USUAL_RATE = 500

LINGERING, IDLE, SLOW, MOVING = range(4)
# Of those that rank lowest, one in so many is closed at a time: ranking looks at all connections, so that it
# must make room for several. Of those that do what they should it is fewer.
ONE_IN = (1, 16, 8, 64)


def rank(connection: Connection, now: int, min_rate: int) -> tuple[int, float] | None:
    """Where a connection stands, the least worth first; None, or infinity: it may not be closed (yet).

    Args:
        now: CLOCK_MONOTONIC in nanoseconds.
        min_rate: bytes per second that keep a body or an answer among those that move.
    """
    if not connection.armed or connection.closed:
        return None
    parser = connection.parser
    if connection.lingering:
        return (LINGERING, connection.idle_since) if now - connection.idle_since > _ARRIVED else None
    if connection.outbox:
        outbox = connection.outbox
        since = outbox.began
        moved = outbox.sent if outbox.taken < 0 else bytes_acked(connection.sock) - outbox.taken
        must_move = True
    elif parser.requests:
        return None
    elif parser.receiving:
        since = connection.began or connection.idle_since
        must_move = parser.in_body
        moved = parser.received if must_move else parser.gathered
    elif connection.served and connection.is_idle:
        return IDLE, connection.idle_since
    else:
        since, moved, must_move = connection.idle_since, 0, False
    age = max(1, now - since)
    if must_move and moved * _SECOND >= (min_rate or USUAL_RATE) * max(age, SHOWN):
        return MOVING, moved * _SECOND / age
    return SLOW, ((moved + HEAD_START) * _SECOND / age if age > YOUTH else inf)


def least_worth(
    connections: Iterable[Connection], now: int, min_rate: int, worst: int
) -> tuple[int, list[Connection]]:
    """The connections that make room: a part of those that rank lowest, and one at least.

    Args:
        worst: no connection of a higher rank than this is taken.

    Returns:
        Their rank and themselves; no connection if none may be closed.
    """
    ranked: list[list[tuple[float, Connection]]] = [[], [], [], []]
    for connection in connections:
        if (found := rank(connection, now, min_rate)) is not None and found[0] <= worst:
            ranked[found[0]].append((found[1], connection))
    for number, candidates in enumerate(ranked):
        if candidates:
            candidates.sort(key=lambda candidate: candidate[0])
            most = len(candidates) // ONE_IN[number] + 1
            return number, [connection for worth, connection in candidates[:most] if worth < inf]
    return worst, []
