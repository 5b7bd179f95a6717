"""Which connections are closed to make room when a worker is full.

A client that opens connections and sends little on them, or reads little of its answers, would keep others
out for as long as the time-outs allow. So the connections that are worth least are closed, in this order:

1. those whose last answer was sent, and which wait only for the client to close (ENDED);
2. idle ones between two requests, the longest idle first;
3. those that have sent least for longest: heads and bodies that are incomplete, handshakes, connections
   without a first request; and those that have read least of an answer for longest;
4. bodies and answers that move at `body_min_rate` or faster, only if there is nothing else.

A connection whose request is in the app, or waits for a thread, is never among them.
"""

import socket
from collections.abc import Callable, Iterable
from math import inf
from typing import TypeVar

from ostler.http1.errors import RequestTimeout
from ostler.logs.worker_log import Log
from ostler.osapi.tcp_info import bytes_acked
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers import phase as phases
from ostler.workers.connection import Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.responder import Responder
from ostler.workers.units import SECOND

Client = TypeVar("Client")

# Bytes that each connection is credited with from the beginning: one that was just made is not a slow one.
CREDIT_BYTES = 1000
# A body or an answer moves if it has moved at the rate for this long (ns), or as much in less time.
RATE_WINDOW_NS = SECOND
# A younger connection (ns) may still send a request, or go on with its handshake: otherwise those that
# attackers open again as fast as they are closed would leave it no time.
MIN_AGE_NS = SECOND // 5
# An answer that was sent has this long (ns) to arrive before its connection may be closed.
_ARRIVED = SECOND // 4
# For ranking, where `body_min_rate` is 0.
USUAL_RATE = 500

ENDED, IDLE, SLOW, MOVING = range(4)
# Of the candidates of the lowest rank, one in so many is closed at a time, and one at least. Ranking looks at
# all connections, so one ranking makes room for several new ones; of idle and moving ones it closes fewer.
ONE_IN = (1, 16, 8, 64)
# How often (ns) evictions of slow clients are logged.
_REPORT_PAUSE = 10 * SECOND


def rank(connection: Connection, now: int, min_rate: int) -> tuple[int, float] | None:
    """What a connection is worth: its rank, and its place within it; None, or infinity: it must stay (yet).

    Args:
        now: CLOCK_MONOTONIC in nanoseconds.
        min_rate: bytes per second that keep a body or an answer among those that move.
    """
    if not connection.watched or connection.phase is phases.CLOSED:
        return None
    parser = connection.parser
    if connection.phase is phases.LINGERING:
        return (ENDED, connection.idle_since) if now - connection.idle_since > _ARRIVED else None
    if connection.output:
        output = connection.output
        since = output.began
        moved = output.sent if output.taken < 0 else bytes_acked(connection.sock) - output.taken
        must_move = True
    elif parser.requests:
        return None
    elif parser.receiving:
        since = connection.receiving_since or connection.idle_since
        must_move = parser.in_body
        moved = parser.received if must_move else parser.gathered
    elif connection.answered_at and connection.is_idle:
        return IDLE, connection.idle_since
    else:
        since, moved, must_move = connection.idle_since, 0, False
    age = max(1, now - since)
    if must_move and moved * SECOND >= (min_rate or USUAL_RATE) * max(age, RATE_WINDOW_NS):
        return MOVING, moved * SECOND / age
    return SLOW, ((moved + CREDIT_BYTES) * SECOND / age if age > MIN_AGE_NS else inf)


def lowest_ranked(
    connections: Iterable[Client], rank_of: Callable[[Client], tuple[int, float] | None], highest: int
) -> tuple[int, list[Client]]:
    """The connections that make room: a part of those of the lowest rank, and one at least.

    Args:
        rank_of: as `rank`.
        highest: no connection of a higher rank than this is taken.

    Returns:
        Their rank and themselves; no connection if none may be closed.
    """
    ranked: list[list[tuple[float, Client]]] = [[], [], [], []]
    for connection in connections:
        if (found := rank_of(connection)) is not None and found[0] <= highest:
            ranked[found[0]].append((found[1], connection))
    for number, candidates in enumerate(ranked):
        if candidates:
            candidates.sort(key=lambda candidate: candidate[0])
            most = len(candidates) // ONE_IN[number] + 1
            return number, [connection for worth, connection in candidates[:most] if worth < inf]
    return highest, []


class EvictionLog:
    """Logs how many slow clients made room, once in ten seconds at most.

    Called only by the thread that polls, or that runs the loop.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._count = self._next = 0

    def add(self, rank: int, closed: int, now: int, reason: str) -> None:
        """Count connections that were closed, if their rank is SLOW or higher. now: nanoseconds."""
        if not closed or rank < SLOW:
            return
        self._count += closed
        if now >= self._next:
            self._next = now + _REPORT_PAUSE
            self._log.warning("connections_evicted", count=self._count, reason=reason)
            self._count = 0


class Evictor:
    """Closes connections to make room. Called only by the thread that polls.

    Args:
        min_rate: the setting `body_min_rate`, in bytes per second.
    """

    def __init__(self, table: ConnectionTable, responder: Responder, log: Log, min_rate: int) -> None:
        self._table = table
        self._responder = responder
        self._eviction_log = EvictionLog(log)
        self._min_rate = min_rate

    def make_room(self, slot: RequestSlot, now: int, highest: int, reason: str) -> bool:
        """Close the connections that are worth least, up to the rank `highest`; True if any was closed.

        Args:
            slot: the calling thread's.
            now: CLOCK_MONOTONIC in nanoseconds.
            reason: for the log, if clients have to be closed that are in the middle of something.
        """
        table = self._table
        connections = list(table.open.values())
        number, least = lowest_ranked(connections, lambda each: rank(each, now, self._min_rate), highest)
        before = len(table.open)
        for connection in least:
            if connection.phase is phases.LINGERING or connection.output:
                table.close(connection, slot)
            elif has_data(connection):
                continue  # bytes came that were not read yet
            elif connection.parser.receiving and connection.violation is None:
                self._responder.refuse(
                    connection, RequestTimeout("it makes room for others", "worker_connections"), slot
                )
                table.close(connection, slot)  # lingering would make no room
            else:
                table.close(connection, slot)
        closed = before - len(table.open)
        self._eviction_log.add(number, closed, now, reason)
        return closed > 0


def has_data(connection: Connection) -> bool:
    """Whether bytes have come that were not read: perhaps a request in the very moment of closing."""
    try:
        return bool(connection.sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
