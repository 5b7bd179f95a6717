"""Answers that are not the app's: refusals, `100 Continue`, and what follows the last answer of a pass.

500 and 504 of a request in the app: wsgi/exchange.py.
"""

import traceback
from collections.abc import Callable

from ostler.http1 import response
from ostler.http1.errors import BodyNotStored, ProtocolViolation
from ostler.logs.access import AccessLog
from ostler.logs.limiter import LimitedLog
from ostler.logs.worker_log import Log
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.addresses import host_of
from ostler.workers.connection import Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.phase import CLOSING, OPEN
from ostler.workers.refusals import log_refused
from ostler.workers.server_date import ServerDate
from ostler.wsgi.exchange import ClientGone


class Responder:
    """Answers clients on the server's own account.

    Called by the thread to which the connection belongs; `slot` is the calling thread's.

    Args:
        log: for defects of ours; limited: for what clients can cause.
        access: the access log, or None.
        flush_access: called behind each line of it.
    """

    def __init__(
        self,
        table: ConnectionTable,
        date: ServerDate,
        log: Log,
        limited: LimitedLog,
        access: AccessLog | None,
        flush_access: Callable[[], object],
    ) -> None:
        self._table = table
        self._date = date
        self._log = log
        self._limited = limited
        self._access = access
        self._flush_access = flush_access

    def settle(self, connection: Connection, slot: RequestSlot) -> None:
        """All requests that came are answered and sent: refuse what came behind them, or ask for the rest."""
        if connection.violation is not None:
            self.refuse(connection, connection.violation, slot)
        elif connection.parser.wants_continue:
            connection.parser.wants_continue = False
            self._send(connection, response.CONTINUE, slot)

    def refuse(self, connection: Connection, violation: ProtocolViolation, slot: RequestSlot) -> None:
        """Answer what is not a request, or not one that is served, with its status; end the connection."""
        if isinstance(violation, BodyNotStored):
            self._limited.write("error", "body_not_stored", "", reason=str(violation))
        connection.enter(CLOSING)
        connection.parser.requests.clear()
        text = f"{violation.status[4:]}\n"
        self.count_refused(
            connection, slot, int(violation.status[:3]), len(text), violation.rule, violation.reason
        )
        if self._access is not None:
            client = {"REMOTE_ADDR": host_of(connection.peer)} | (connection.peer_info or {})
            self._access.refused(client, connection.parser.beginning, violation.status, len(text))
            self._flush_access()
        self._send(connection, response.plain_answer(violation.status, text, self._date.lines), slot)
        if not connection.output and connection.phase is CLOSING:
            self._table.linger(connection, slot)

    def count_refused(
        self, connection: Connection, slot: RequestSlot, status: int, size: int, rule: str, reason: str
    ) -> None:
        """Count a refused request, and log it.

        Args:
            status, size: of the answer, the size in bytes.
            rule: one of http1.errors.RULES; reason: what is wrong with the request.
        """
        slot.refused(status, size, rule)
        client = (connection.peer_info or {}).get("REMOTE_ADDR") or host_of(connection.peer)
        log_refused(self._limited, client, status, rule, reason)

    def flush(self, connection: Connection, slot: RequestSlot, now: int) -> bool:
        """Send more of answers that the client was slow to take; True if a request waits behind them."""
        connection.idle_since = now
        try:
            if not connection.flush():
                return False
        except ClientGone:
            self._table.close(connection, slot)
            return False
        if connection.unconfirmed:
            slot.add_bytes(connection.unconfirmed)
            connection.unconfirmed = 0
        connection.output = None
        if connection.phase is not OPEN:
            self._table.linger(connection, slot)
            return False
        if connection.parser.requests:
            connection.answered_at = now  # the request behind has waited for its own client up to now
            return True
        self.settle(connection, slot)
        return False

    def fail(self, connection: Connection, slot: RequestSlot) -> None:
        """Called while an exception is handled that is a defect of ours: it costs one connection, no more."""
        slot.leave_app()
        self._log.error("internal_error", traceback=traceback.format_exc())
        self._table.close(connection, slot)

    def _send(self, connection: Connection, data: bytes, slot: RequestSlot) -> None:
        try:
            connection.send(data)
        except ClientGone:
            self._table.close(connection, slot)
