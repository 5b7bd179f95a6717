"""Serving requests: the app is called with an environ, its answer is sent, and all of it is counted."""

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from ostler.http1.request import BodySink, Head, Request, Rules
from ostler.scoreboard import layout
from ostler.scoreboard.writer import CellWriter
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.connection import Connection
from ostler.workers.interrupt import LONG, Deadlines
from ostler.workers.lane import QUICK, QUICK_NS, Lane
from ostler.workers.queueing import overloaded, waiting_time
from ostler.workers.wiring import Wiring
from ostler.wsgi.body import BufferedBody, StreamedBody
from ostler.wsgi.environ import Environ, head_environ, listener_environ, request_environ, worker_environ
from ostler.wsgi.exchange import App, ClientGone, DeadlineExceeded, Exchange

# Names of this module are found quicker than another's, and these are read for every request.
_STARTED, _STATUS_CLASSES, _BYTES_SENT, _HISTOGRAM = (
    layout.STARTED,
    layout.STATUS_CLASSES,
    layout.BYTES_SENT,
    layout.HISTOGRAM,
)
_WILDCARDS = ("0.0.0.0", "[::]")  # noqa: S104
# A longer request counts as this much, so that a few do not hide how long most take.
_CAP = 2_000_000


class Serving(Wiring):
    """Calls the app; a part of the engine.

    Attributes:
        deadlines: ends requests that take too long, when the supervisor says so.
    """

    # Requests of one thread may be in the app at the same time.
    _interleaves = False
    # A connection's pipelined requests let others go first after this time (ns); 0: never.
    _turn_lasts = 0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = context.settings
        self._app: App = context.app
        self._new_exchange = context.exchange
        self._quota = context.quota
        self._on_quota = context.on_quota
        self._answered = 0
        self._keep_connections = settings.keepalive > 0
        self._rules, self._trusting_rules = _rules(settings)
        self._new_body = _body_factory(settings)
        self._queue_timeout = int(settings.queue_timeout * 1_000_000_000)
        self.deadlines = self._new_deadlines(context.cell)
        threaded = self._threads > 1 or self._interleaves
        shared = worker_environ(threaded, settings.sendfile, context.log.errors, settings.root_path)
        shared["ostler.extend_deadline"] = self.deadlines.extend
        if context.tls is not None:
            shared |= {"wsgi.url_scheme": "https", "HTTPS": "on"}
        self._shared = shared
        self._environs: dict[str, Environ] = {}
        # A moving average of what requests take in the app, in nanoseconds (several threads only).
        self._average = 0
        self._had_long = False

    def _new_deadlines(self, cell: CellWriter) -> Deadlines:
        return Deadlines(cell)

    def _serve_safely(self, connection: Connection, lane: Lane) -> None:
        """As `_serve`, where nobody looks after what it raises."""
        try:
            self._serve(connection, lane)
        except (Exception, DeadlineExceeded):  # noqa: BLE001 - see _fail
            self._fail(connection, lane)

    def _serve(self, connection: Connection, lane: Lane) -> None:
        """Answer the requests that are there, as far as the client takes the answers and its turn lasts."""
        words = lane.words
        requests = connection.parser.requests
        turn_ends = 0
        while requests and not connection.outbox:
            request = requests.pop(0)
            line = request.line
            keep_alive = request.keep_alive and self._keep_connections
            if not request.complete:
                keep_alive = False  # the connection ends with a request that the app reads while it comes
            exchange = self._new_exchange(request, connection, self._date_server, keep_alive)
            if not request.complete:
                _feed_from(connection, request, exchange)
            template = connection.template
            if request.head is not connection.template_head or template is None:
                template = self._make_template(connection, request.head)
            environ = request_environ(template, request)
            if line is not lane.line:
                lane.show(line)
            started = monotonic_ns()
            if started > lane.quick_until and self._waited_too_long(connection, lane, started):
                if self._turn_away(connection, lane, request, exchange, environ):
                    continue
                return
            gone = False
            try:
                lane.flight[_STARTED] = started
                try:
                    exchange.run(self._app, environ)
                except ClientGone:
                    gone = True
                lane.flight[_STARTED] = 0
                connection.idle_since = connection.served = ended = monotonic_ns()
                took = ended - started
                if took > LONG:
                    self._had_long = True
                    self.deadlines.end(started)
            except DeadlineExceeded:
                lane.flight[_STARTED] = 0
                connection.idle_since = connection.served = ended = monotonic_ns()
                took = ended - started
                gone = True
                exchange.give_up()
            if gone and not exchange.head_sent:
                if connection.violation is not None:
                    self._refuse(connection, connection.violation, lane)
                    return
                exchange.code, exchange.status = 499, "499 Client Gone"
            words[_STATUS_CLASSES + exchange.code // 100] += 1
            words[_HISTOGRAM + (QUICK[took >> 10] if took < QUICK_NS else layout.bucket_of(took))] += 1
            sent = exchange.sent
            if connection.outbox:
                # What a client has not taken of a file is counted when it has, if ever.
                connection.promised = min(connection.outbox.promised, sent)
                sent -= connection.promised
            words[_BYTES_SENT] += sent
            if self._access is not None or exchange.error is not None:
                self._log_request(request, exchange, environ, took)
            if self._quota:
                self._count_down()
            if self._threads > 1:
                self._average += (min(took, _CAP) - self._average) >> 3
            if gone:
                self._close(connection, lane)
                return
            if not exchange.keep_alive:
                self._end(connection, request.keep_alive, lane)
                return
            if requests and self._turn_lasts:
                turn_ends = turn_ends or started + self._turn_lasts
                if ended > turn_ends:
                    return
        parser = connection.parser
        if not connection.outbox and (connection.violation is not None or parser.wants_continue):
            self._settle(connection, lane)

    def _waited_too_long(self, connection: Connection, lane: Lane, now: int) -> bool:
        """Note how long a request waited, if it did; True if that is longer than it may.

        For as long as the one before it on its connection was not answered it waited for nobody else.
        """
        earliest = max(connection.served, lane.quick_until - layout.LEAST_QUEUED)
        if now - earliest < layout.LEAST_QUEUED:
            return False
        waited = waiting_time(connection.sock, now, earliest, max(connection.served, self._now))
        if waited < layout.LEAST_QUEUED:
            return False
        lane.words[layout.QUEUED + layout.bucket_of(waited)] += 1
        return 0 < self._queue_timeout < waited

    def _turn_away(
        self, connection: Connection, lane: Lane, request: Request, exchange: Exchange, environ: Environ
    ) -> bool:
        """Answer without the app a request that has waited too long; False if the connection has ended.

        It counts as answered, but not where times in the app are counted.
        """
        connection.idle_since = connection.served = monotonic_ns()
        gone = False
        try:
            Exchange.run(exchange, overloaded, environ)  # without hooks, which are about requests to the app
        except ClientGone:
            gone = True
            if not exchange.head_sent:
                exchange.code, exchange.status = 499, "499 Client Gone"
        lane.words[_STATUS_CLASSES + exchange.code // 100] += 1
        lane.words[_BYTES_SENT] += exchange.sent
        if self._access is not None:
            self._log_request(request, exchange, environ, 0)
        if gone:
            self._close(connection, lane)
            return False
        if not exchange.keep_alive:
            self._end(connection, request.keep_alive, lane)
            return False
        return True

    def _make_template(self, connection: Connection, head: Head) -> Environ:
        """The part of the environ that goes for all requests of the connection with this head."""
        facts: Environ = dict(connection.facts or {})
        if connection.tls:
            facts |= connection.sock.facts()
        listener = self._environs.get(connection.listener)
        if listener is None or listener["SERVER_NAME"] in _WILDCARDS:
            # All interfaces; or a sibling of another generation accepted it, on a listener not ours.
            listener = listener_environ(self._shared, connection.sock.getsockname())
        mountable = connection.parser.rules is self._trusting_rules
        environ = head_environ(listener, connection.peer, facts, head, mountable)
        connection.template, connection.template_head = environ, head
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

    def _end(self, connection: Connection, surprise: bool, lane: Lane) -> None:
        """The last answer of a connection was given; `surprise`: the client did not ask for the end."""
        connection.closing = True
        connection.parser.requests.clear()
        if connection.outbox:
            return
        if surprise or connection.parser.receiving:
            # It may be sending the next request already, or the rest of this one; a plain close would answer
            # that with a reset, which can take away the answer that is on its way.
            self._linger(connection, lane)
        else:
            self._close(connection, lane)

    def _count_down(self) -> None:
        self._answered += 1
        if self._answered >= self._quota:
            self._quota = 0
            self._on_quota(self._answered)


def _feed_from(connection: Connection, request: Request, exchange: Exchange) -> None:
    """Let the app read a body that is still coming."""

    def pull() -> None:
        if exchange.head_sent:
            connection.parser.wants_continue = False  # too late for it (RFC 9110 section 10.1.1)
        connection.pull()

    connection.pulled = monotonic_ns()
    body = request.body
    assert isinstance(body, StreamedBody)
    connection.streamed = body
    body.pull = pull
    body.complete = lambda: request.complete


def _rules(settings: Settings) -> tuple[Rules, Rules]:
    """What strangers may send, and what trusted proxies may send."""

    def rules(**more: Any) -> Rules:
        return Rules(
            limit_request_line=settings.limit_request_line,
            limit_request_fields=settings.limit_request_fields,
            limit_request_field_size=settings.limit_request_field_size,
            limit_request_body=settings.limit_request_body,
            header_map=settings.header_map,
            stream=settings.stream_request,
            permit_obsolete_folding=settings.permit_obsolete_folding,
            strip_header_spaces=settings.strip_header_spaces,
            permit_unconventional_http_method=settings.permit_unconventional_http_method,
            casefold_http_method=settings.casefold_http_method,
            permit_unconventional_http_version=settings.permit_unconventional_http_version,
            **more,
        )

    return rules(), rules(
        forwarder_headers=frozenset(name.lower().encode("latin-1") for name in settings.forwarder_headers),
        secure_scheme_headers={
            name.lower().encode("latin-1"): value.encode("latin-1")
            for name, value in settings.secure_scheme_headers.items()
        },
    )


def _body_factory(settings: Settings) -> Callable[[], BodySink]:
    if settings.stream_request:
        return StreamedBody
    return lambda: BufferedBody(settings.buffer_request, settings.tmp_upload_dir)
