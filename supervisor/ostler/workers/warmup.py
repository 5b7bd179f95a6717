"""Warm-up requests, which a worker answers before it reports that it is ready.

They pass through the complete engine like those of a client, on a private pair of sockets and with private
counters. What the app imports, connects and caches for them is there when the first client comes; and if the
app can't answer them, the worker is not started.
"""

import mmap
import re
import socket
from typing import TYPE_CHECKING, Any

from ostler.logs.worker_log import Log
from ostler.osapi import original
from ostler.osapi.needed import LIMITS
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.memory import size
from ostler.settings.kinds.http import WarmupRequest
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.thread_engine import Engine
from ostler.wsgi.exchange import App

if TYPE_CHECKING:
    from ssl import SSLContext

# The final answer; interim ones come first (RFC 9110 section 15.2).
_STATUS = re.compile(rb"(?:HTTP/1\.1 1\d\d .*?\r\n\r\n)*HTTP/1\.1 (\d{3}[^\r]*)\r\n", re.DOTALL)
# Seconds that the loop waits for the reader between two passes.
_READER_WAIT = 0.005
_READ = 65536
# Fields for framing and for the connection are set here.
_OWN_FIELDS = {"connection", "content-length", "transfer-encoding"}
_PEER = ("127.0.0.1", 0)


class WarmupError(Exception):
    """A warm-up request was not answered as it should be.

    Args:
        reason: one line.
        trace: the app's traceback if it raised.
    """

    def __init__(self, reason: str, trace: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trace = trace


def warm_up(app: App, settings: Settings, log: Log, tls: "SSLContext | None", listener: Any) -> None:
    """Have `app` answer all of `settings.warmup_request`, one after the other.

    Args:
        log: gets all events but tracebacks of the app.
        tls: clients use TLS; these requests do not, but their environ is the same.
        listener: getsockname() of a listener for clients.

    Raises:
        WarmupError: a request has no answer, a status of 500 or more, or makes the app raise.
    """
    if not settings.warmup_request:
        return
    capture = _TracebackCapture(log)
    slots = settings.threads + 1
    accounting = Accounting(mmap.mmap(-1, size(slots)), slots)
    engine = _PrivateEngine(Context(app, [], settings, accounting, capture, tls=tls))
    peer_info = (
        {"SERVER_NAME": "localhost", "SERVER_PORT": str(listener[1])} if isinstance(listener, tuple) else {}
    )
    try:
        for request in settings.warmup_request:
            capture.trace = None
            answer = engine.ask(_bytes_of(request), peer_info)
            match = _STATUS.match(answer)
            judge(request, match[1].decode("latin-1").strip() if match else None, capture.trace, log)
    finally:
        engine.close()


def judge(request: WarmupRequest, status: str | None, trace: str | None, log: Log) -> None:
    """Check an answer.

    Args:
        status: the status line's text, e.g. `200 OK`; None: there was no answer.
        trace: the app's traceback if it raised.
        log: gets warnings.

    Raises:
        WarmupError: the answer shows a failure of the app.
    """
    name = f"warmup_request {request.method} {request.path}"
    if status is None:
        raise WarmupError(f"{name} was not answered", trace)
    code = int(status[:3])
    if code >= 500:
        raise WarmupError(f"{name} was answered with {status}", trace)
    if trace is not None:
        raise WarmupError(f"{name} made the app raise after it had answered with {status}", trace)
    if code >= 400:
        # A wrong path or host: it warms up little, but the app works.
        log.warning("warmup_request", problem=f"{name} was answered with {status}; check its path and host")


def _bytes_of(request: WarmupRequest) -> bytes:
    fields = {name: value for name, value in request.headers.items() if name.lower() not in _OWN_FIELDS}
    given = {name.lower() for name in fields}
    lines = [f"{request.method} {request.path} HTTP/1.1"]
    if "host" not in given:
        lines.append("Host: localhost")
    if "user-agent" not in given:
        lines.append("User-Agent: ostler")
    if request.method not in ("GET", "HEAD"):
        lines.append("Content-Length: 0")
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join((*lines, "Connection: close", "", "")).encode("latin-1")


class _PrivateEngine(Engine):
    """An engine whose only client is this module."""

    def ask(self, request: bytes, peer_info: dict[str, str]) -> bytes:
        """Serve one request on a connection of its own; returns the bytes of its answer."""
        slot = self.slot(0)
        served, asking = original.socketpair()
        with asking:
            served.setblocking(False)
            connection = self.parts.factory.make(served, "", _PEER)
            connection.peer_info = peer_info
            self.parts.table.add(connection, "", slot)
            asking.sendall(request)
            answer = bytearray()
            # A thread, because the answer may be larger than the buffers of the sockets.
            reader = original.thread(_read_head, "ostler-warmup", (asking, answer), daemon=False)
            try:
                reader.start()
            except RuntimeError as error:
                raise WarmupError(f"can't make a thread to read the answer: {error}; {LIMITS}") from None
            try:
                self.parts.reactor.watch(connection)
                while reader.is_alive():
                    self.run_once()
                    reader.join(_READER_WAIT)
            finally:
                self.parts.table.close(connection, slot)
                reader.join()
        return bytes(answer)


def _read_head(asking: socket.socket, answer: bytearray) -> None:
    """Read to the end, keep only the beginning."""
    try:
        while data := asking.recv(_READ):
            if len(answer) < _READ:
                answer += data
    except OSError:
        pass  # the connection was cut; the bytes before that count


class _TracebackCapture(Log):
    """Captures the first traceback of the app instead of logging it: the supervisor logs the failure."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.errors = log.errors
        self.trace: str | None = None

    def event(self, level: str, name: str, **fields: Any) -> None:
        if self.trace is None and "traceback" in fields:
            self.trace = fields["traceback"]
        else:
            self._log.event(level, name, **fields)
