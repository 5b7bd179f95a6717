"""What has to be done from time to time: time-outs of connections, and the steps of draining."""

from collections.abc import Callable

from ostler.http1.errors import RequestTimeout
from ostler.http1.frames import GOING_AWAY, SERVICE_RESTART
from ostler.logs.worker_log import Log
from ostler.scoreboard.request_slot import RequestSlot
from ostler.settings.table import Settings
from ostler.workers.acceptor import Acceptor
from ostler.workers.connection import STALL_LIMIT, Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.drain import DrainState
from ostler.workers.eviction import has_data
from ostler.workers.phase import CLOSED, LINGERING
from ostler.workers.reactor import Reactor
from ostler.workers.responder import Responder
from ostler.workers.siblings import Siblings
from ostler.workers.units import SECOND

SWEEP = 1.0
"""Seconds between two sweeps, while draining SWEEP_DRAINING."""
SWEEP_DRAINING = 0.1
# Connections looked at between two waits, so that ten thousand idle ones delay no request.
_SLICE = 256
# Connections received at once from siblings that leave as well.
_MOST_RECEIVED = 256
# When draining begins, an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = SECOND // 2
_LINGER = 2 * SECOND
# A connection that was made ahead of its first request may wait for it at least so long.
_FIRST_REQUEST = 5 * SECOND
# The same, and a request of which nothing comes, while draining: one silent client must not delay a reload.
_DRAIN_STALL = 5 * SECOND


class Sweeper:
    """Looks at all connections of a worker in turn. Called only by the thread that polls.

    Args:
        end_keep_alive: called when draining begins and connections are not handed off: answers end their
            connections from then on.

    Attributes:
        due: when the next sweep begins (CLOCK_MONOTONIC, ns).
        remaining: what the present sweep has not looked at. While there is anything, and while the worker
            drains, `sweep` is to be called in each pass.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Reactor,
        table: ConnectionTable,
        responder: Responder,
        acceptor: Acceptor,
        siblings: Siblings,
        drain: DrainState,
        end_keep_alive: Callable[[], None],
        log: Log,
    ) -> None:
        self._reactor = reactor
        self._table = table
        self._responder = responder
        self._acceptor = acceptor
        self._siblings = siblings
        self._drain = drain
        self._end_keep_alive = end_keep_alive
        self._log = log
        self._upgraded_closed = False
        self._keepalive = int(settings.keepalive * SECOND)
        self.remaining: list[Connection] = []
        self.due = 0

    def sweep(self, now: int, slot: RequestSlot) -> None:
        """Look at some connections: close what idles too long, hand off what can be while draining.

        Args:
            now: as of the last look at the sockets: what came while the app was busy is not late.
            slot: the calling thread's.
        """
        draining = self._drain.asked
        if draining:
            self._go_on_draining(slot)
            if self._table.upgraded:
                self._end_upgraded(now)
        if not self.remaining:
            self.remaining = list(self._table.open.values())
            self.due = now + int((SWEEP_DRAINING if draining else SWEEP) * SECOND)
            self._acceptor.try_resume_siblings(now)
        size = len(self.remaining) if draining else _SLICE
        batch = self.remaining[-size:]
        del self.remaining[-size:]
        for connection in batch:
            if connection.watched and connection.phase is not CLOSED:
                self._look_at(connection, now, slot)
            elif connection.event_stream is not None:
                connection.look_for_client()

    def _go_on_draining(self, slot: RequestSlot) -> None:
        drain = self._drain
        if drain.abandoned:
            self._acceptor.close_listeners()
        elif self._acceptor.may_accept:
            self._acceptor.leave_others()
        else:
            self._acceptor.stop()
        if drain.begin() and not drain.hand_over:
            # A worker that hands its connections off need not have clients close them.
            self._end_keep_alive()
        if self._siblings and not drain.hand_over:
            # All workers leave: no other one will receive what was handed off just before. There may be no
            # end of it: the rest waits for the next sweep.
            for _ in range(_MOST_RECEIVED):
                if (connection := self._acceptor.receive(slot)) is None:
                    break
                self._reactor.watch(connection)

    def _end_upgraded(self, now: int) -> None:
        """End the connections that the app has taken, shortly before draining is over; its requests end then.

        Clients that speak websocket are asked to close first. The connections stay those of their threads.
        """
        drain = self._drain
        if drain.deadline is None:
            return
        lead, left = drain.upgraded_lead(), drain.deadline - now
        if left > lead:
            return
        found = [sock for each in list(self._table.upgraded) if (sock := each.app_socket) is not None]
        if not self._upgraded_closed:
            self._upgraded_closed = True
            self._log.info("upgraded_closed", count=len(found), reason="graceful_timeout is over")
        for app_socket in found:
            app_socket.say_goodbye(SERVICE_RESTART if drain.hand_over else GOING_AWAY)
            if left <= lead // 2:
                app_socket.cut()

    def _look_at(self, connection: Connection, now: int, slot: RequestSlot) -> None:
        if connection.is_idle:
            if self._drain.hand_over and self._siblings.hand_off(connection, slot):
                return
            if connection.template is not None and now - connection.idle_since > SECOND:
                # Ten thousand idle connections should not keep ten thousand sets of header fields.
                connection.template = None
                connection.parser.forget()
        if not self._is_stale(connection, now):
            return
        if connection.parser.receiving and connection.phase is not LINGERING and not connection.output:
            rule = "body_timeout" if connection.in_body else "header_timeout"
            self._responder.refuse(connection, RequestTimeout(rule=rule), slot)
            self._reactor.watch(connection)
        else:
            self._table.close(connection, slot)

    def _is_stale(self, connection: Connection, now: int) -> bool:
        """Whether a connection has idled too long, or takes too long for its request or its answer."""
        draining = self._drain.asked
        idle = now - connection.idle_since
        if connection.phase is LINGERING:
            return idle > _LINGER
        if connection.output:
            if idle <= (_DRAIN_STALL if draining else STALL_LIMIT):
                return False
            if connection.reads():
                connection.idle_since = now
                return False
            return True
        if connection.parser.receiving or connection.is_unprepared:
            deadline = connection.receive_deadline()
            return 0 < deadline < now or (draining and idle > _DRAIN_STALL)
        limit = self._keepalive if connection.answered_at else max(self._keepalive, _FIRST_REQUEST)
        if draining:
            limit = min(limit, _DRAIN_IDLE)
            idle = min(idle, now - self._drain.began)
        return idle > limit and not has_data(connection)
