"""One client's connection: its parser, and the bytes it has not taken yet."""

import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, error
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from ostler.http1 import response
from ostler.http1.errors import ProtocolViolation
from ostler.http1.request import BodySink, Head, RequestParser, Rules
from ostler.osapi import original
from ostler.settings.table import Settings
from ostler.workers.outbox import Outbox
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import ClientGone

if TYPE_CHECKING:
    from ssl import SSLContext

    from ostler.wsgi.body import StreamedBody

READ_SIZE = 64 * 1024
_plain_send = socket.socket.send
# struct tcp_info up to tcpi_bytes_acked (linux/tcp.h).
_BYTES_ACKED = Struct("=120xQ")
# How long an app waits for a client that takes nothing at all of an answer of which too much is kept already.
_SECOND = 1_000_000_000
_STALL_LIMIT = 60 * _SECOND
# From this time on a body must have come at `body_min_rate`. One lost packet costs a client a second or two.
_EARLY = 3 * _SECOND
# Exceptions for a thread that waits reach it when the wait ends.
_LONGEST_WAIT = _SECOND // 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may cost, from the settings; times in nanoseconds, 0: no limit."""

    buffer_response: int
    buffer_response_file: int
    folder: str | None
    header_timeout: int
    body_timeout: int
    body_min_rate: int

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(
            settings.buffer_response,
            settings.buffer_response_file,
            settings.tmp_upload_dir,
            int(settings.header_timeout * _SECOND),
            int(settings.body_timeout * _SECOND),
            settings.body_min_rate,
        )


class Connection:
    """A connection, owned by one thread at a time.

    Attributes:
        sock: plain, or a TlsSocket that looks the same.
        listener: the listener that it came by; peer: its getpeername().
        facts: what a proxy says of the client, for the environ; None: nothing.
        template: what all requests with the head `template_head` share; None: to be made.
        idle_since: when the last bytes came or went (CLOCK_MONOTONIC, ns).
        address: what it counts as for `limit_connections_per_address`; None: as nothing.
        began: when the part that is being received began, a head or a body; 0: nothing is.
        body_deadline: when the body that is being received is too late, unless more of it comes.
        credited: bytes of it that have put that time off already.
        promised: bytes of the app's files in the last answer that are not counted as sent yet.
        pulled: when the app last got bytes of a body that it reads while it comes.
        served: when the last answer on it was given (CLOCK_MONOTONIC, ns); 0: none was.
        outbox: bytes of answers the client has not taken yet; None or empty: it has all.
        mask: what the epoll watches it for; 0: not known there.
        send_now: sends on `sock` what goes at once.
        wait_for: waits for an event of its descriptor, as `_wait_for`.
        streamed: the body that its app reads while it comes, the connection's last; None: there was none.
        odd: not to be read from like most: under TLS, lingering, or with a preface to come.
        armed: it is the leader's; else the thread's that serves it.
        closed: its descriptor is gone.
        violation: what the client did wrong behind the requests that wait; answered after them.
        closing: nothing more is read; closes when all is sent.
        lingering: everything is sent, what still comes is thrown away until the client closes, so that a
            reset does not take the answer away from it (RFC 9112 section 9.6).
        preface: as much of a PROXY header as has come; None: none is expected.
    """

    __slots__ = (
        "_limits",
        "address",
        "armed",
        "began",
        "body_deadline",
        "closed",
        "closing",
        "credited",
        "facts",
        "fd",
        "idle_since",
        "in_body",
        "lingering",
        "listener",
        "mask",
        "odd",
        "outbox",
        "parser",
        "peer",
        "preface",
        "promised",
        "pulled",
        "send_now",
        "served",
        "sock",
        "streamed",
        "template",
        "template_head",
        "tls",
        "violation",
        "wait_for",
    )

    def __init__(
        self,
        sock: socket.socket,
        listener: str,
        peer: Any,
        rules: Rules,
        new_body: Callable[[], BodySink],
        limits: Limits,
        now: int,
    ) -> None:
        self.sock: Any = sock
        self.fd = sock.fileno()
        self.tls = False
        self.listener = listener
        self.peer = peer
        self.parser = RequestParser(rules, new_body)
        self._limits = limits
        self.template: Environ | None = None
        self.template_head: Head | None = None
        self.outbox: Outbox | None = None
        self.send_now: Callable[[Any, bytes], int] = _plain_send
        self.wait_for: Callable[[int, int, int], bool] = _wait_for
        self.idle_since = now
        self.address: str | None = None
        self.began = 0
        self.body_deadline = self.credited = 0
        self.pulled = 0
        self.promised = 0
        self.streamed: StreamedBody | None = None
        self.in_body = False
        self.facts: dict[str, str] | None = None
        self.odd = False
        self.served = 0
        self.mask = 0
        self.armed = True
        self.closed = False
        self.closing = False
        self.lingering = False
        self.violation: ProtocolViolation | None = None
        self.preface: bytes | None = None

    def wrap(self, context: "SSLContext") -> None:
        """Speak TLS from now on; the handshake goes on whenever something is read or written."""
        # Here, because OpenSSL takes some megabytes, which plain HTTP does without.
        from ostler.workers.tls import TlsSocket

        self.sock = TlsSocket(self.sock, context)
        self.tls = self.odd = True
        self.send_now = TlsSocket.send

    @property
    def is_idle(self) -> bool:
        """Between two requests: nothing of it is in our memory but who it is."""
        parser = self.parser
        return not (
            parser.receiving
            or parser.requests
            or self.outbox
            or self.closing
            or self.violation is not None
            or self.is_unprepared
        )

    @property
    def is_unprepared(self) -> bool:
        """Requests can't come yet."""
        return self.preface is not None or (self.tls and not self.sock.handshaken)

    # -- a transport for exchanges -----------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send what goes and keep the rest; with too much kept, wait until the client takes some.

        Raises:
            ClientGone: the connection broke, or the client took nothing for too long.
        """
        outbox = self.outbox
        if not outbox:
            try:
                sent = self.send_now(self.sock, data)
            except BlockingIOError:
                sent = 0
            except OSError as problem:
                raise ClientGone from problem
            if sent == len(data):
                return
            outbox = self._open_outbox()
            outbox.add(memoryview(data)[sent:])
            return
        outbox.add(memoryview(data))
        # Nobody watches the socket while the app runs: the client may have taken something by now.
        self.flush()
        self._wait_for_room(outbox)

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send a range of a file as `send` does bytes; the descriptor stays the caller's.

        Raises:
            ClientGone: the connection broke.
        """
        outbox = self._open_outbox()
        outbox.add_file(os.dup(fd), offset, count)
        self.flush()

    def flush(self) -> bool:
        """Send what was kept; True if nothing is left.

        Raises:
            ClientGone: the connection broke, or a file became shorter than what was promised of it.
        """
        if self.outbox is None:
            return True
        try:
            return self.outbox.flush(self.sock)
        except OSError as problem:
            raise ClientGone from problem

    def _open_outbox(self) -> Outbox:
        if self.outbox is None:
            limits = self._limits
            self.outbox = Outbox(
                limits.buffer_response,
                limits.buffer_response_file,
                limits.folder,
                monotonic_ns(),
                bytes_acked(self.sock),
            )
        return self.outbox

    def _wait_for_room(self, outbox: Outbox) -> None:
        if not outbox.full:
            return
        while outbox.full:
            if not self.wait_for(self.fd, select.POLLOUT, monotonic_ns() + _STALL_LIMIT):
                raise ClientGone("it reads nothing")
            self.flush()

    # -- receiving ---------------------------------------------------------------------------------------

    def note_progress(self, now: int) -> None:
        """Remember since when what is being received is being received; bytes that trickle change nothing."""
        parser = self.parser
        if not parser.receiving:
            self.began = 0
            self.in_body = False
            return
        if self.began == 0 or parser.in_body != self.in_body:
            self.began = now
            self.in_body = parser.in_body
            self.body_deadline = now + min(self._limits.body_timeout, _EARLY)
            self.credited = 0
        limits = self._limits
        if self.in_body and limits.body_min_rate:
            received = parser.received
            earned = (received - self.credited) * _SECOND // limits.body_min_rate
            self.credited = received
            # What came fast allows for a pause, but not for one of hours.
            self.body_deadline = min(self.body_deadline + earned, now + limits.body_timeout)

    def receive_deadline(self) -> int:
        """When the head or body that is being received is too late (CLOCK_MONOTONIC, ns); 0: never."""
        limits = self._limits
        if not self.in_body:
            # What comes before requests, a handshake say, began with the connection.
            began = self.began or self.idle_since
            return began + limits.header_timeout if limits.header_timeout else 0
        if not limits.body_timeout:
            return 0
        return self.body_deadline if limits.body_min_rate else self.began + limits.body_timeout

    def pull(self) -> None:
        """Receive more of a request that is handed out while it comes; called by the app's thread.

        Raises:
            ClientGone: the client went away, was too slow or sent what is no HTTP.
        """
        parser = self.parser
        if self.violation is not None:
            raise ClientGone(str(self.violation))
        if parser.wants_continue:
            parser.wants_continue = False
            self.send(response.CONTINUE)
        if self.began:
            apps_own = monotonic_ns() - self.pulled  # is not the client's
            self.began += apps_own
            self.body_deadline += apps_own
        deadline = self.receive_deadline()
        while True:
            try:
                data = self.sock.recv(READ_SIZE)
                break
            except BlockingIOError:
                if not self.wait_for(self.fd, select.POLLIN, deadline):
                    raise ClientGone("it sends too slowly") from None
            except OSError as problem:
                raise ClientGone from problem
        if not data:
            raise ClientGone("it went away within its request")
        try:
            parser.feed(data)
        except ProtocolViolation as violation:
            self.violation = violation.without_traceback()
            raise ClientGone(str(violation)) from None
        self.pulled = monotonic_ns()
        self.note_progress(self.pulled)


def bytes_acked(sock: Any) -> int:
    """How many bytes the client's kernel has taken so far (tcp(7), TCP_INFO); -1 if that is not known.

    It is not known of Unix sockets.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        acked: int = _BYTES_ACKED.unpack(info)[0]
    except (OSError, error):
        return -1
    return acked


def _wait_for(fd: int, event: int, deadline: int) -> bool:
    """Wait for an event of poll(2) until a time (CLOCK_MONOTONIC, ns; 0: for ever); False if none came."""
    poll = original.poll()
    poll.register(fd, event)
    while True:
        left = deadline - monotonic_ns() if deadline else _LONGEST_WAIT
        if poll.poll(max(0, min(left, _LONGEST_WAIT)) / 1_000_000):
            return True
        if left <= _LONGEST_WAIT and deadline:
            return False
