"""Warm-up requests: a worker answers them itself before it says that it is ready.

They go through the whole engine, as a client's do, on a private pair of sockets and with counters that nobody
sees. What they make the app import, connect and cache is there when the first client comes; and an app that
can't answer them can't serve.
"""

import mmap
import re
import socket
from typing import TYPE_CHECKING, Any

from ostler.logs.lean import Log
from ostler.osapi import original
from ostler.osapi.needed import LIMITS
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.memory import size
from ostler.settings.kinds import WarmupRequest
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.engine import Engine
from ostler.wsgi.exchange import App

if TYPE_CHECKING:
    from ssl import SSLContext

# An answer behind which nothing else is: interim ones come first (RFC 9110 section 15.2).
_STATUS = re.compile(rb"(?:HTTP/1\.1 1\d\d .*?\r\n\r\n)*HTTP/1\.1 (\d{3}[^\r]*)\r\n", re.DOTALL)
# How long the loop waits for the reader before it looks for more to send.
_PATIENCE = 0.005
_READ = 65536
# What says how long a message is, and how the connection ends, is ours to say.
_OURS = {"connection", "content-length", "transfer-encoding"}
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
        log: what is not about a failing request goes there.
        tls: clients will come by TLS; these requests do not, but the app is told so.
        listener: getsockname() of a listener that clients will come to.

    Raises:
        WarmupError: for the first that has no answer, one of 500 or more, or makes the app raise.
    """
    if not settings.warmup_request:
        return
    listening = _Listening(log)
    slots = settings.threads + 1
    accounting = Accounting(mmap.mmap(-1, size(slots)), slots)
    engine = _PrivateEngine(Context(app, [], settings, accounting, listening, tls=tls))
    peer_info = (
        {"SERVER_NAME": "localhost", "SERVER_PORT": str(listener[1])} if isinstance(listener, tuple) else {}
    )
    try:
        for request in settings.warmup_request:
            listening.trace = None
            answer = engine.ask(_bytes_of(request), peer_info)
            match = _STATUS.match(answer)
            judge(request, match[1].decode("latin-1").strip() if match else None, listening.trace, log)
    finally:
        engine.close()


def judge(request: WarmupRequest, status: str | None, trace: str | None, log: Log) -> None:
    """Say whether an answer is good enough.

    Args:
        status: the status line's text, e.g. `200 OK`; None: there was no answer.
        trace: the app's traceback if it raised.
        log: hears of what is odd.

    Raises:
        WarmupError: it is not.
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
        # A wrong path, or a host that the app does not know: it warms little, but the app works.
        log.warning("warmup_request", problem=f"{name} was answered with {status}; is that what you meant?")


def _bytes_of(request: WarmupRequest) -> bytes:
    fields = {name: value for name, value in request.headers.items() if name.lower() not in _OURS}
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
    """An engine whose only client is ourselves."""

    def ask(self, request: bytes, peer_info: dict[str, str]) -> bytes:
        """Serve one request on a connection of its own; its answer, as far as there is one."""
        slot = self.slot(0)
        served, asking = original.socketpair()
        with asking:
            served.setblocking(False)
            connection = self.parts.factory.make(served, "", _PEER)
            connection.peer_info = peer_info
            self.parts.table.add(connection, "", slot)
            asking.sendall(request)
            answer = bytearray()
            # A thread, because the app may answer with more than fits between two sockets.
            reader = original.thread(_read_head, "ostler-warmup", (asking, answer), daemon=False)
            try:
                reader.start()
            except RuntimeError as error:
                raise WarmupError(f"no thread can be made to read an answer: {error}; {LIMITS}") from None
            try:
                self.parts.reactor.watch(connection)
                while reader.is_alive():
                    self.run_once()
                    reader.join(_PATIENCE)
            finally:
                self.parts.table.close(connection, slot)
                reader.join()
        return bytes(answer)


def _read_head(asking: socket.socket, answer: bytearray) -> None:
    """Read to the end, keep the beginning."""
    try:
        while data := asking.recv(_READ):
            if len(answer) < _READ:
                answer += data
    except OSError:
        pass  # cut: what came before it counts


class _Listening(Log):
    """Hears what the app raises instead of writing it down: who is told of the failure writes it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.errors = log.errors
        self.trace: str | None = None

    def event(self, level: str, name: str, **fields: Any) -> None:
        if self.trace is None and "traceback" in fields:
            self.trace = fields["traceback"]
        else:
            self._log.event(level, name, **fields)
