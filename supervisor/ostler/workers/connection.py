"""One client's connection: its state, its parser, and the bytes that the client has not taken yet.

A connection is in one phase (phase.py). Independent of the phase are whether it speaks TLS, whether the
reactor watches it, and what is being received and sent.
"""

import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from ostler.http1 import response
from ostler.http1.errors import ProtocolViolation
from ostler.http1.request import BodySink, RequestParser, Rules
from ostler.osapi import original
from ostler.osapi.tcp_info import bytes_acked
from ostler.scoreboard.request_slot import RequestSlot
from ostler.settings.table import Settings
from ostler.workers.output_buffer import OutputBuffer
from ostler.workers.phase import LINGERING, OPEN, PROXY_HEADER, TRANSITIONS, IllegalPhaseChange, Phase
from ostler.workers.system_calls import PLAIN, READ_SIZE, SystemCalls
from ostler.workers.units import SECOND
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import ClientGone

if TYPE_CHECKING:
    from ssl import SSLContext

    from ostler.workers.app_socket import AppSocket
    from ostler.wsgi.body import StreamedBody

STALL_LIMIT = 60 * SECOND
"""How long a client may take nothing at all of an answer (ns)."""
# From this time on a body must have come at `body_min_rate`. One lost packet costs a client a second or two.
_EARLY = 3 * SECOND


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
            int(settings.header_timeout * SECOND),
            int(settings.body_timeout * SECOND),
            settings.body_min_rate,
        )


class Connection:
    """A connection. Called only by the thread to which it belongs: the one that polls while the reactor
    watches it, else the one that serves its request.

    Args:
        sock: the accepted socket, non-blocking.
        listener: the name of the listener that it came by.
        peer: its getpeername().
        rules: what requests may be.
        new_body: makes the sink for a body that begins.
        limits: what it may cost.
        now: CLOCK_MONOTONIC in nanoseconds, as all times here.
        calls: how system calls are made.
        slot_at_hand: the request slot of the calling thread or greenlet; None: it serves no request.
        on_stays: called with that slot when its request may stay in the app for any time.
        trusted: the client is a proxy whose fields are trusted.
        proxied: the client is a proxy that may send a PROXY header.

    Attributes:
        sock: plain, or a TlsSocket, which has the same methods.
        phase: changed with `enter`; direct: derived from it: what comes goes to the parser as it is.
        tls: it speaks TLS.
        fd: -1: it is closed.
        watched: the reactor watches it, so that it belongs to the thread that polls.
        mask: what the epoll watches it for; 0: the epoll does not know it.
        parser: turns bytes into requests; those that are whole and not answered are in `parser.requests`.
        violation: what the client did wrong behind the requests that wait; answered after them.
        output: bytes of answers that the client has not taken; None or empty: it has taken all.
        unconfirmed: bytes of the app's files in the last answer that are not counted as sent yet.
        streamed: the body that its app reads while it comes, the connection's last; None: there was none.
        peer_info: what a proxy says of the client, for the environ; None: nothing.
        address: what it counts as for `limit_connections_per_address`; None: as nothing.
        proxy_header: as much of a PROXY header as has come.
        template: what the environs of all its requests have in common; None: it is to be made.
        idle_since: when the last bytes came or went.
        answered_at: when the last answer on it was given; 0: none was.
        waiting_since: when the request came that waits on it for any worker, as far as one of these has seen
            it; before `answered_at`: that is not known.
        receiving_since: when the part that is being received began, a head or a body; 0: none is.
        in_body: that part is a body.
        body_deadline: when the body that is being received is too late, unless more of it comes.
        credited_bytes: bytes of it that have extended that deadline already.
        pulled_at: when the app last got bytes of a body that it reads while it comes.
        event_stream: the slot of the request that is answered with one, and when it began; another request
            may be there by now; None: there is none, or its client has gone.
        app_socket: what the app uses it by, once that has taken it; None: it has not.
    """

    __slots__ = (
        "_limits",
        "_on_stays",
        "_send",
        "_slot_at_hand",
        "_wait_for",
        "address",
        "answered_at",
        "app_socket",
        "body_deadline",
        "credited_bytes",
        "direct",
        "event_stream",
        "fd",
        "idle_since",
        "in_body",
        "listener",
        "mask",
        "output",
        "parser",
        "peer",
        "peer_info",
        "phase",
        "proxy_header",
        "pulled_at",
        "receiving_since",
        "sock",
        "streamed",
        "template",
        "tls",
        "trusted",
        "unconfirmed",
        "violation",
        "waiting_since",
        "watched",
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
        calls: SystemCalls = PLAIN,
        slot_at_hand: Callable[[], RequestSlot | None] = lambda: None,
        on_stays: Callable[[RequestSlot], object] = lambda _slot: None,
        trusted: bool = False,
        proxied: bool = False,
    ) -> None:
        self.sock: Any = sock
        self.fd = sock.fileno()
        self.phase = PROXY_HEADER if proxied else OPEN
        self.direct = not proxied
        self.tls = False
        self.watched = True
        self.mask = 0
        self.listener = listener
        self.peer = peer
        self.trusted = trusted
        self.parser = RequestParser(rules, new_body)
        self._limits = limits
        self._send = calls.send
        self._wait_for = calls.wait_for
        self._slot_at_hand = slot_at_hand
        self._on_stays = on_stays
        self.violation: ProtocolViolation | None = None
        self.output: OutputBuffer | None = None
        self.unconfirmed = 0
        self.streamed: StreamedBody | None = None
        self.peer_info: dict[str, str] | None = None
        self.address: str | None = None
        self.proxy_header = b""
        self.template: Environ | None = None
        self.idle_since = now
        self.answered_at = self.waiting_since = 0
        self.receiving_since = 0
        self.in_body = False
        self.body_deadline = self.credited_bytes = 0
        self.pulled_at = 0
        self.event_stream: tuple[RequestSlot, int] | None = None
        self.app_socket: AppSocket | None = None

    def enter(self, phase: Phase) -> None:
        """Change the phase.

        Raises:
            IllegalPhaseChange: it can't follow the present one.
        """
        if phase not in TRANSITIONS[self.phase]:
            raise IllegalPhaseChange(f"{self.phase.name} to {phase.name}")
        self.phase = phase
        # Bytes behind a client's last request are received, but not parsed, while answers are sent.
        self.direct = not self.tls and phase is not PROXY_HEADER and phase is not LINGERING

    def speak_tls(self, context: "SSLContext") -> None:
        """Speak TLS from now on; the handshake goes on whenever something is read or written.

        Raises:
            OSError, ValueError: the client has gone already.
        """
        # Imported here: OpenSSL takes some megabytes, which plain HTTP does without.
        from ostler.workers.tls_socket import TlsSocket

        self.sock = TlsSocket(self.sock, context)
        self.tls = True
        self.direct = False
        self._send = TlsSocket.send

    @property
    def is_idle(self) -> bool:
        """Between two requests: no bytes of a request or an answer are in memory."""
        parser = self.parser
        return not (
            parser.receiving
            or parser.requests
            or self.output
            or self.phase is not OPEN
            or self.violation is not None
            or self.is_unprepared
        )

    @property
    def is_unprepared(self) -> bool:
        """Requests can't come yet: before them there is a PROXY header or a TLS handshake."""
        return self.phase is PROXY_HEADER or (self.tls and not self.sock.handshaken)

    def close(self) -> None:
        """Close the descriptor."""
        self.fd = -1  # first: other threads run as soon as it is closed, and may get its number
        self.sock.close()

    # -- a transport for exchanges -----------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send what the client takes now and keep the rest; wait for the client while too much is kept.

        Raises:
            ClientGone: the connection broke, or the client took nothing for too long.
        """
        output = self.output
        if not output:
            try:
                sent = self._send(self.sock, data)
            except BlockingIOError:
                sent = 0
            except OSError as problem:
                raise ClientGone from problem
            if sent == len(data):
                return
            output = self._open_output()
            output.add(memoryview(data)[sent:])
            return
        output.add(memoryview(data))
        # Nothing watches the socket while the app runs: the client may have taken something by now.
        self.flush()
        self._wait_for_room(output)

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send a range of a file as `send` does bytes; the descriptor stays the caller's.

        Raises:
            ClientGone: the connection broke.
        """
        output = self._open_output()
        output.add_file(os.dup(fd), offset, count)
        self.flush()

    def note_part(self, silent: bool = False) -> None:
        """Note that the request at hand makes progress; called by the thread that serves it.

        silent: from now on its time does not count while its client is there; see `look_for_client`.
        """
        if (slot := self._slot_at_hand()) is None:
            return
        if not silent:
            slot.progressed(monotonic_ns())
            return
        slot.pause()
        if self.event_stream != (stream := (slot, slot.started)):
            self.event_stream = stream
            self._on_stays(slot)

    def look_for_client(self) -> None:
        """Let the time of an event stream count again if its client has gone, or closed its side.

        Called now and then by the thread that polls, while the connection belongs to another one. The app
        does not notice as long as it sends nothing.
        """
        assert self.event_stream is not None
        slot, started = self.event_stream
        if slot.started == started and (fd := self.fd) >= 0:
            poll = original.poll()
            poll.register(fd, select.POLLRDHUP)
            if poll.poll(0):
                slot.progressed(monotonic_ns())
                self.event_stream = None
        else:
            self.event_stream = None

    def flush(self) -> bool:
        """Send of what was kept as much as the client takes now; True if nothing is left.

        Raises:
            ClientGone: the connection broke, or a file became shorter than the range to be sent.
        """
        if self.output is None:
            return True
        try:
            return self.output.flush(self.sock)
        except OSError as problem:
            raise ClientGone from problem

    def _open_output(self) -> OutputBuffer:
        if self.output is None:
            limits = self._limits
            self.output = OutputBuffer(
                limits.buffer_response,
                limits.buffer_response_file,
                limits.folder,
                monotonic_ns(),
                bytes_acked(self.sock),
            )
        return self.output

    def _wait_for_room(self, output: OutputBuffer) -> None:
        if not output.full:
            return
        while output.full:
            deadline = monotonic_ns() + STALL_LIMIT
            if not self._wait_for_client(select.POLLOUT, deadline, self._slot_at_hand()) and not self.reads():
                raise ClientGone("it reads nothing")
            self.flush()

    def reads(self) -> bool:
        """Whether the client has read anything of the output since this was last asked, or since it began.

        The kernel reports room only when a third of its buffer is free: a slow client takes minutes for that.
        """
        output, taken = self.output, bytes_acked(self.sock)
        if output is None or taken <= output.seen:
            return False
        output.seen = taken
        return True

    def _wait_for_client(self, event: int, deadline: int, slot: RequestSlot | None) -> bool:
        """As system_calls.wait_for: the time counts as the client's, not as that of the request in `slot`."""
        if slot is None:
            return self._wait_for(self.fd, event, deadline)
        slot.pause()
        try:
            return self._wait_for(self.fd, event, deadline)
        finally:
            slot.progressed(monotonic_ns())

    # -- receiving ---------------------------------------------------------------------------------------

    def note_progress(self, now: int) -> None:
        """Note that bytes came, for the time-outs of heads and bodies. A few bytes extend no deadline."""
        parser = self.parser
        if not parser.receiving:
            self.receiving_since = 0
            self.in_body = False
            return
        if self.receiving_since == 0 or parser.in_body != self.in_body:
            self.receiving_since = now
            self.in_body = parser.in_body
            self.body_deadline = now + min(self._limits.body_timeout, _EARLY)
            self.credited_bytes = 0
        limits = self._limits
        if self.in_body and limits.body_min_rate:
            received = parser.received
            earned = (received - self.credited_bytes) * SECOND // limits.body_min_rate
            self.credited_bytes = received
            # Bytes that came fast allow for a pause, but for `body_timeout` at most.
            self.body_deadline = min(self.body_deadline + earned, now + limits.body_timeout)

    def receive_deadline(self) -> int:
        """When the head or body that is being received is too late (CLOCK_MONOTONIC, ns); 0: never."""
        limits = self._limits
        if not self.in_body:
            # What comes before requests, such as a handshake, began with the connection.
            began = self.receiving_since or self.idle_since
            return began + limits.header_timeout if limits.header_timeout else 0
        if not limits.body_timeout:
            return 0
        return self.body_deadline if limits.body_min_rate else self.receiving_since + limits.body_timeout

    def pull(self, slot: RequestSlot | None = None) -> None:
        """Receive more of a request that is handed out while it comes; called by the app's thread.

        Args:
            slot: shows the request, which makes progress by this; waiting is not its time but the client's.

        Raises:
            ClientGone: the client went away, was too slow, or sent what is not valid HTTP.
        """
        parser = self.parser
        if self.violation is not None:
            raise ClientGone(str(self.violation))
        if parser.wants_continue:
            parser.wants_continue = False
            self.send(response.CONTINUE)
        if self.receiving_since:
            apps_own = monotonic_ns() - self.pulled_at  # time that the client has not taken
            self.receiving_since += apps_own
            self.body_deadline += apps_own
        deadline = self.receive_deadline()
        while True:
            try:
                data = self.sock.recv(READ_SIZE)
                break
            except BlockingIOError:
                if not self._wait_for_client(select.POLLIN, deadline, slot):
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
        self.pulled_at = monotonic_ns()
        self.note_progress(self.pulled_at)
        if slot is not None:
            slot.progressed(self.pulled_at)
