"""Connections to and from sibling workers, by the hand-off.

A worker that is busy hands off connections whose requests would have to wait, and an overloaded one hands off
one connection at a time: so workers that are new, or that a burst of connections has passed by, get their
share of connections that stay open. A worker that leaves hands off all that are idle.
"""

from time import monotonic_ns
from typing import TYPE_CHECKING

from ostler.logs.worker_log import Log
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.connection import Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.drain import DrainState
from ostler.workers.handoff import INVALID_RECEIVED, HandedOff, HandOff
from ostler.workers.units import SECOND

if TYPE_CHECKING:
    from ssl import SSLContext

# For how long (ns) nothing is received after much that was not a connection.
_RECEIVE_PAUSE = SECOND
# How often (ns) an overloaded worker hands a connection off, and how seldom if each comes back.
_SHARE_PAUSE = 10_000_000
_LONGEST_SHARE_PAUSE = 250_000_000


class Siblings:
    """Hands connections off and receives them. Called only by the thread that polls.

    Args:
        handoff: None while priming and in tests.
        drain: whether this worker leaves, and whether others stay.
        tls: what connections of this worker speak TLS with, or None.

    Attributes:
        fd: readable while a connection waits to be received; -1 without a hand-off.
        share_due: when an overloaded worker may hand off the next connection (CLOCK_MONOTONIC, ns).
    """

    def __init__(
        self,
        handoff: HandOff | None,
        table: ConnectionTable,
        drain: DrainState,
        log: Log,
        tls: "SSLContext | None",
    ) -> None:
        self._handoff = handoff
        self._table = table
        self._drain = drain
        self._log = log
        self._tls = tls
        self.fd = handoff.fileno() if handoff is not None else -1
        self.share_due = 0
        self._share_pause = _SHARE_PAUSE
        # A connection was handed off by `share`, and has not come back.
        self._shared = False
        self._resume: int | None = None
        self._pause_logged = False

    def __bool__(self) -> bool:
        """Whether there is a hand-off."""
        return self._handoff is not None

    @property
    def is_paused(self) -> bool:
        return self._resume is not None

    def receive(self) -> HandedOff | None:
        """The next connection that a sibling has handed off; its next request has probably come.

        None if there is none; `is_paused` is true then if nothing should be received for a while.
        """
        assert self._handoff is not None
        if (found := self._handoff.receive()) is None:
            if self._handoff.only_invalid_received:
                self._pause()
            return None
        if self._tls is not None:
            # From an old generation, which did without TLS: the client can't go on here.
            found.sock.close()
            return None
        if found.returned:
            # No sibling had time: the next attempt comes later.
            self._share_pause = min(2 * self._share_pause, _LONGEST_SHARE_PAUSE)
            self._shared = False
        return found

    def may_resume(self, now: int) -> bool:
        """Whether a pause is over at `now`; it ends with that."""
        if self._resume is None or now < self._resume:
            return False
        self._resume = None
        return True

    def hand_off(self, connection: Connection, slot: RequestSlot) -> bool:
        """Hand an idle connection off; True if it is gone."""
        if self._handoff is None or not connection.is_idle or not self._handoff.send(connection):
            return False
        self._table.close_handed_off(connection, slot)
        return True

    def hand_off_waiting(self, connection: Connection, slot: RequestSlot) -> bool:
        """Hand off a connection whose request would have to wait here, if a sibling may be free."""
        return (self._drain.hand_over or not self._drain.asked) and self.hand_off(connection, slot)

    def share(self, connection: Connection | None, slot: RequestSlot, now: int) -> bool:
        """Hand off one of many connections that wait here; True if it is gone. It may come back.

        Args:
            connection: one with an event; None: the event was about something else.
        """
        if self._shared:
            self._share_pause = max(self._share_pause // 2, _SHARE_PAUSE)
        self.share_due = now + self._share_pause
        if connection is None or not connection.watched or not self.hand_off_waiting(connection, slot):
            return False
        self._shared = True
        return True

    def _pause(self) -> None:
        if not self._pause_logged:
            self._pause_logged = True  # the next ones would be as many lines as seconds
            self._log.warning(
                "hand_off_paused",
                reason=INVALID_RECEIVED,
            )
        self._resume = monotonic_ns() + _RECEIVE_PAUSE
