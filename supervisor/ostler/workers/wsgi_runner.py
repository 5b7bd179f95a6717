"""Serving WSGI apps: the request runner that Ostler has.

Ordinary requests are served by the C extension (supervisor/native/exchange.c), if there is one. What it
leaves, and what it has begun and can't end, is served here.
"""

from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING

from ostler import native
from ostler.http1.errors import RULES, ProtocolViolation
from ostler.http1.request import Request, RequestParser
from ostler.scoreboard import layout
from ostler.scoreboard.layout import LEAST_QUEUED
from ostler.scoreboard.request_slot import QUICK, RequestSlot
from ostler.workers.addresses import listener_name
from ostler.workers.base import Context
from ostler.workers.connection import Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.queueing import QueueTimes, queue_timeout_app
from ostler.workers.responder import Responder
from ostler.workers.server_date import ServerDate
from ostler.workers.soft_interrupt import LONG_REQUEST_NS, SoftInterrupts
from ostler.workers.system_calls import WaitInApp, wait_in_app
from ostler.wsgi.body import StreamedBody
from ostler.wsgi.environ import (
    Environ,
    connection_environ,
    listener_environ,
    request_environ,
    worker_environ,
)
from ostler.wsgi.exchange import JOIN_LIMIT, App, ClientGone, Exchange
from ostler.wsgi.file_wrapper import FileWrapper
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker, interruptible

if TYPE_CHECKING:
    from ostler.workers.upgrades import Upgrade

_WILDCARDS = ("0.0.0.0", "[::]")  # noqa: S104
# A longer request counts as this much (ns), so that a few do not hide how long most take.
_CAP = 2_000_000
# The status of a request whose client left before it had its answer; nginx's number.
_CLIENT_GONE = "499 Client Gone"
# What the runner of the C extension returns if all is done.
_ANSWERED = 1
# Where in `slot.unfinished` the app is that goes on with it.
_BEGUN = 3


class WsgiRunner:
    """Calls a WSGI app, by the exchange of the context.

    Attributes: see RequestRunner.

    Args:
        soft_interrupts: ends requests that take too long.
        flush_access: called behind each line of the access log.
        multithreaded: as `wsgi.multithread`.
        wait_in_app: how the app waits for a connection that it has taken; see SystemCalls.
        on_stays: called with the request slot when the app takes a connection; see Connection.
        turn: after how long (ns) pipelined requests of a connection let other clients go first; 0: never.
    """

    def __init__(
        self,
        context: Context,
        table: ConnectionTable,
        responder: Responder,
        queue_times: QueueTimes,
        date: ServerDate,
        soft_interrupts: SoftInterrupts,
        flush_access: Callable[[], object],
        multithreaded: bool,
        turn: int,
        wait_in_app: WaitInApp = wait_in_app,
        on_stays: Callable[[RequestSlot], object] = lambda _slot: None,
    ) -> None:
        settings = context.settings
        self._app: App = context.app
        self._new_exchange = context.exchange
        self._table = table
        self._responder = responder
        self._queue_times = queue_times
        self._date = date
        self._soft_interrupts = soft_interrupts
        self._log = context.log
        self._access = context.access
        self._flush_access = flush_access
        self._wait_in_app = wait_in_app
        self._on_stays = on_stays
        self._averages = settings.threads > 1
        self._turn = turn
        self._quota = context.quota
        self._on_quota = context.on_quota
        self._answered = 0
        self._queue_timeout = int(settings.queue_timeout * 1_000_000_000)
        self.keep_connections = settings.keepalive > 0
        self.average = 0
        self.had_long_request = False
        shared = worker_environ(multithreaded, settings.sendfile, context.log.errors, settings.root_path)
        shared["ostler.extend_deadline"] = soft_interrupts.extend
        if context.tls is not None:
            shared |= {"wsgi.url_scheme": "https", "HTTPS": "on"}
        self._shared = shared
        addresses = [listener.getsockname() for listener in context.listeners]
        self._environs = {listener_name(address): listener_environ(shared, address) for address in addresses}
        self._ordinary: Callable[[WsgiRunner, Connection, RequestSlot, int], int] | None = None
        # Hooks are called by an Exchange of their own.
        if native.module is not None and context.exchange is Exchange:
            self._ordinary = native.module.OrdinaryRunner(
                app=self._app,
                make_exchange=lambda request, transport: Exchange(request, transport, date.lines, True),
                date=date,
                connection_type=Connection,
                parser_type=RequestParser,
                slot_type=RequestSlot,
                file_wrapper=FileWrapper,
                layout=layout,
                quick=QUICK,
                logs=self._access is not None,
                counts_down=bool(self._quota),
                averages=self._averages,
                is_exact=self._queue_timeout > 0,
                long_request=LONG_REQUEST_NS,
                most_of_average=_CAP,
                join_limit=JOIN_LIMIT,
            ).run

    def run(self, connection: Connection, slot: RequestSlot, prompt_until: int) -> None:
        """See RequestRunner."""
        try:
            try:
                if self._ordinary is None or self._run_ordinary(connection, slot, prompt_until) != _ANSWERED:
                    self._run(connection, slot, prompt_until)
            except DeadlineExceeded as late:
                if slot.unfinished is None:
                    raise
                # It was meant for a request that the C extension has begun, and came on the way to `_call`.
                slot.unfinished[_BEGUN].fail(late)
                self._run(connection, slot, prompt_until)
        except QuitWorker:
            raise
        except BaseException:  # noqa: BLE001 - DeadlineExceeded and those of greenlets are no Exception
            self._responder.fail(connection, slot)

    @interruptible
    def _run_ordinary(self, connection: Connection, slot: RequestSlot, prompt_until: int) -> int:
        """Serve the connection's only request, if it is ordinary, by the C extension.

        Returns _ANSWERED; or the request, if it was begun, is in `slot.unfinished`.
        """
        assert self._ordinary is not None
        answered: int = self._ordinary(self, connection, slot, prompt_until)
        return answered

    def _run(self, connection: Connection, slot: RequestSlot, prompt_until: int) -> None:
        """`run` without the C extension, or what that has left."""
        requests = connection.parser.requests
        turn_ends = 0
        if slot.unfinished is not None:
            request, exchange, environ, app, started = slot.unfinished
            if not self._call(connection, slot, request, exchange, environ, app, None, started):
                return
        while requests and not connection.output:
            request = requests.pop(0)
            app, upgrade = self._app, None
            keep_alive = self._keeps(request)
            exchange = self._new_exchange(request, connection, self._date.lines, keep_alive)
            if not request.complete:
                _feed_from(connection, request, exchange, slot)
            if request.upgrade and request.complete:
                upgrade = self._offer(connection, request, slot)
                exchange = self._new_exchange(request, upgrade, self._date.lines, keep_alive)
                app = upgrade.around(self._app, exchange)
            environ = self._environ_of(connection, request)
            if upgrade is not None:
                environ["gunicorn.socket"] = upgrade.socket
            started = monotonic_ns()
            waited = 0
            if started > prompt_until:
                waited = self._note_waiting(connection, slot, started, prompt_until)
            if 0 < self._queue_timeout < waited:
                if upgrade is not None:
                    upgrade.socket.withdraw()
                if not self._answer_503(connection, slot, request, exchange, environ):
                    return
                if upgrade is not None:
                    _resume(connection)
                continue
            if not self._call(connection, slot, request, exchange, environ, app, upgrade, started):
                return
            if requests and self._turn:
                turn_ends = turn_ends or started + self._turn
                if connection.answered_at > turn_ends:
                    return
        self._settle(connection, slot)

    def _keeps(self, request: Request) -> bool:
        """Whether the connection may go on; it ends with a request that the app reads while it comes."""
        return request.keep_alive and self.keep_connections and request.complete

    def _environ_of(self, connection: Connection, request: Request) -> Environ:
        template = connection.template or self._make_template(connection)
        return request_environ(template, request, connection.trusted)

    def _settle(self, connection: Connection, slot: RequestSlot) -> None:
        """Act on what came behind the connection's requests, if all of these are answered."""
        parser = connection.parser
        if not (parser.requests or connection.output) and (
            connection.violation is not None or parser.wants_continue
        ):
            self._responder.settle(connection, slot)

    def _note_waiting(
        self, connection: Connection, slot: RequestSlot, started: int, prompt_until: int
    ) -> int:
        """Count how long a request has waited; returns that (ns), or 0 if it was too short to be counted."""
        waited = self._queue_times.waited(connection, started, prompt_until - LEAST_QUEUED)
        if waited:
            slot.waited(waited)
        return waited

    def _call(
        self,
        connection: Connection,
        slot: RequestSlot,
        request: Request,
        exchange: Exchange,
        environ: Environ,
        app: App,
        upgrade: "Upgrade | None",
        started: int,
    ) -> bool:
        """Call the app, send and count its answer; False if the connection is not to be read any more.

        app: that of the worker, or what goes on with the request in `slot.unfinished`.
        """
        gone = late = False
        try:
            if slot.unfinished is None:
                slot.begin(request.line.method, request.line.target, started)
            else:
                slot.unfinished = None
            try:
                exchange.run(app, environ)
            except ClientGone:
                gone = True
            slot.leave_app()
            connection.idle_since = connection.answered_at = ended = monotonic_ns()
            took = ended - started
            if took > LONG_REQUEST_NS:
                self.had_long_request = True
                self._soft_interrupts.end(started)
        except DeadlineExceeded:
            slot.leave_app()
            connection.idle_since = connection.answered_at = ended = monotonic_ns()
            took = ended - started
            gone = late = True
            exchange.give_up()
        if upgrade is not None:
            if not upgrade.socket.withdraw():
                self._end_upgraded(connection, slot, request, exchange, environ, upgrade.socket.sent, took)
                return False
            if exchange.keep_alive and not gone:
                _resume(connection)
        if gone and not late:
            if connection.violation is not None and not exchange.head_sent:
                self._responder.refuse(connection, connection.violation, slot)
                return False
            exchange.code, exchange.status = 499, _CLIENT_GONE
        sent = exchange.sent
        if connection.output:
            # What a client has not taken of a file is counted when it has, if ever.
            connection.unconfirmed = min(connection.output.unsent_file_bytes, sent)
            sent -= connection.unconfirmed
        slot.count(exchange.code, sent, took)
        if self._access is not None or exchange.error is not None:
            self._log_request(request, exchange, environ, took)
        self._count_down()
        if self._averages:
            self.average += (min(took, _CAP) - self.average) >> 3
        return self._goes_on(connection, slot, request, exchange, gone)

    def refuse_late(self, connection: Connection, slot: RequestSlot) -> None:
        """See RequestRunner."""
        try:
            request = connection.parser.requests.pop(0)
            exchange = self._new_exchange(request, connection, self._date.lines, self._keeps(request))
            environ = self._environ_of(connection, request)
            slot.waited(max(monotonic_ns() - connection.idle_since, LEAST_QUEUED))
            if not self._answer_503(connection, slot, request, exchange, environ):
                return
            if request.upgrade:
                _resume(connection)
            self._settle(connection, slot)
        except Exception:  # noqa: BLE001 - a defect of ours costs the connection
            self._responder.fail(connection, slot)

    def _answer_503(
        self,
        connection: Connection,
        slot: RequestSlot,
        request: Request,
        exchange: Exchange,
        environ: Environ,
    ) -> bool:
        """Answer a request that has waited too long without the app; False if the connection ends."""
        connection.idle_since = connection.answered_at = monotonic_ns()
        gone = False
        try:
            # Without hooks, which are about requests to the app.
            Exchange.run(exchange, queue_timeout_app, environ)
        except ClientGone:
            gone = True
            exchange.code, exchange.status = 499, _CLIENT_GONE
        reason = f"it has waited too long ({RULES['queue_timeout']})"
        self._responder.count_refused(connection, slot, exchange.code, exchange.sent, "queue_timeout", reason)
        if self._access is not None:
            self._log_request(request, exchange, environ, 0)
        return self._goes_on(connection, slot, request, exchange, gone)

    def _goes_on(
        self, connection: Connection, slot: RequestSlot, request: Request, exchange: Exchange, gone: bool
    ) -> bool:
        """Whether the connection goes on behind an answer; if not, end it. gone: its client has left."""
        if gone:
            self._table.close(connection, slot)
        elif not exchange.keep_alive:
            self._table.end(connection, request.keep_alive, slot)
        else:
            return True
        return False

    def _offer(self, connection: Connection, request: Request, slot: RequestSlot) -> "Upgrade":
        """The upgrade that a request offers, for the app."""
        # Imported here: most workers never see one.
        from ostler.workers.upgrades import Upgrade

        return Upgrade(connection, request, self._table, slot, self._wait_in_app, self._on_stays)

    def _end_upgraded(
        self,
        connection: Connection,
        slot: RequestSlot,
        request: Request,
        exchange: Exchange,
        environ: Environ,
        sent: int,
        took: int,
    ) -> None:
        """End the request by which the app has taken the connection."""
        exchange.code, exchange.status, exchange.sent = 101, "101 Switching Protocols", sent
        slot.refused(101, sent)  # how long a websocket was open is no duration of an answer
        self._table.end_upgraded(connection, slot)
        if self._access is not None or exchange.error is not None:
            self._log_request(request, exchange, environ, took)
        self._count_down()

    def _make_template(self, connection: Connection) -> Environ:
        """The part of the environ that goes for all requests of the connection."""
        peer_info: Environ = dict(connection.peer_info or {})
        if connection.tls:
            peer_info |= connection.sock.peer_info()
        listener = self._environs.get(connection.listener)
        if listener is None or listener["SERVER_NAME"] in _WILDCARDS:
            # All interfaces; or a sibling of another generation accepted it, on a listener not ours.
            listener = listener_environ(self._shared, connection.sock.getsockname())
        connection.template = environ = connection_environ(listener, connection.peer, peer_info)
        return environ

    def _log_request(self, request: Request, exchange: Exchange, environ: Environ, took: int) -> None:
        line = request.line
        if exchange.error is not None:
            self._log.error(
                "request_failed",
                method=line.method,
                path=line.target.partition(b"?")[0].decode("latin-1"),
                traceback=exchange.error,
            )
        if self._access is not None:
            self._access.answered(
                line.method,
                line.raw_uri,
                line.protocol,
                environ,
                exchange.status,
                exchange.headers,
                exchange.sent,
                took,
            )
            self._flush_access()

    def _count_down(self) -> None:
        """Count a request for the quota."""
        self._answered += 1
        if self._quota and self._answered >= self._quota:
            self._quota = self._on_quota(self._answered) or 0


def _resume(connection: Connection) -> None:
    """An upgrade was not taken: what came behind its request is HTTP."""
    try:
        connection.parser.resume()
    except ProtocolViolation as violation:
        connection.violation = violation.without_traceback()
    connection.note_progress(monotonic_ns())


def _feed_from(connection: Connection, request: Request, exchange: Exchange, slot: RequestSlot) -> None:
    """Let the app read a body that is still coming."""

    def pull() -> None:
        if exchange.head_sent:
            connection.parser.wants_continue = False  # too late for it (RFC 9110 section 10.1.1)
        connection.pull(slot)

    connection.pulled_at = monotonic_ns()
    body = request.body
    assert isinstance(body, StreamedBody)
    connection.streamed = body
    body.pull = pull
    body.complete = lambda: request.complete
