"""One request and its response: the one caller of the app.

`Exchange.run` calls the app and sends what it answers through the transport. Small answers leave in one
send. What an app does wrong ends here: as a 500 while nothing was sent, as a cut connection afterwards, so
that a client can see that the answer is not whole.
"""

import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from supervisor.http1 import response
from supervisor.http1.request import Request
from supervisor.wsgi.environ import Environ

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# Joining head and body saves a system call; beyond this size copying costs more than that.
_JOIN_LIMIT = 64 * 1024


class Transport(Protocol):
    """Where an answer goes. `send` never loses bytes: what the client does not take yet is kept."""

    def send(self, data: bytes, /) -> None:
        """Send now as much as goes, keep the rest; may wait while too much is kept.

        Raises:
            OSError: the client is gone.
        """
        ...


class QuitWorker(BaseException):
    """Raised in the main thread to end the worker at once; no business of the app's."""


class ClientGone(Exception):
    """The client went away before it had the whole answer."""


class Exchange:
    """One request and its response.

    Args:
        request: what was asked.
        transport: where the answer goes.
        date_server: the lines `Server` and `Date`.
        may_keep_alive: whether the connection may go on afterwards.

    Attributes:
        status: the status line's text, e.g. `200 OK`; code: its number.
        sent: bytes of the body that were sent.
        keep_alive: whether the connection can go on.
        error: the app's exception as a traceback, if it raised.
    """

    __slots__ = (
        "_chunked",
        "_date_server",
        "_head",
        "_head_request",
        "_head_sent",
        "_http10",
        "_remaining",
        "_transport",
        "code",
        "error",
        "headers",
        "keep_alive",
        "sent",
        "status",
    )

    def __init__(
        self, request: Request, transport: Transport, date_server: bytes, may_keep_alive: bool
    ) -> None:
        self._transport = transport
        self._date_server = date_server
        self._http10 = request.protocol == "HTTP/1.0"
        self._head_request = request.method == "HEAD"
        self._head: response.Head | None = None
        self._head_sent = False
        self._chunked = False
        self._remaining: int | None = None
        self.keep_alive = may_keep_alive and request.keep_alive
        self.status = ""
        self.code = 500
        self.headers: response.HeaderList = []
        self.sent = 0
        self.error: str | None = None

    # -- what the app calls ------------------------------------------------------------------------------

    def start_response(
        self, status: str, headers: response.HeaderList, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's start_response."""
        if exc_info is not None:
            try:
                if self._head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._head is not None:
            raise AssertionError("start_response was called twice without exc_info")
        self._head = head = response.Head(status, headers)
        self.code = head.code
        self.status = status
        self.headers = headers
        return self._write

    def _write(self, data: bytes) -> None:
        """PEP 3333's write(): at once, for apps that can't return an iterable."""
        if data:
            self._send_part(data)

    # -- what the worker calls ---------------------------------------------------------------------------

    def run(self, app: App, environ: Environ) -> None:
        """Call the app and send its answer.

        Raises:
            ClientGone: the connection broke; `close()` of the result was called all the same.
        """
        result: Any = None
        try:
            try:
                result = app(environ, self.start_response)
                if type(result) is list and len(result) == 1 and not self._head_sent:
                    self._send_whole(result[0])
                else:
                    self._send_parts(result)
            finally:
                if result is not None and type(result) is not list:
                    close = getattr(result, "close", None)
                    if close is not None:
                        close()
        except (QuitWorker, ClientGone):
            self.keep_alive = False
            raise
        except BaseException:  # noqa: BLE001 - SystemExit too: an app must not end its worker
            self._fail()

    def _send_whole(self, body: bytes) -> None:
        """The usual answer: one block, known as a whole."""
        head = self._require_head()
        length = len(body)
        lines = head.lines
        if self._head_request or head.bodiless:
            # HEAD is told the length that GET would have (RFC 9110 section 9.3.2).
            if head.length is None and length and not head.bodiless:
                lines.append(b"Content-Length: %d\r\n" % length)
            body = b""
        elif head.length is None:
            lines.append(b"Content-Length: %d\r\n" % length)
        elif head.length != length:
            self._send_part(body)
            self._end()
            return
        if head.has_date or head.has_server:
            self._add_date_server(head)
        else:
            lines.append(self._date_server)
        if head.close:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n\r\n")
        elif self._http10:
            lines.append(b"Connection: keep-alive\r\n\r\n")
        else:
            lines.append(b"\r\n")
        if len(body) <= _JOIN_LIMIT:
            lines.append(body)
            data = b"".join(lines)
            self._head_sent = True
            self._send(data)
        else:
            data = b"".join(lines)
            self._head_sent = True
            self._send(data)
            self._send(body)
        self.sent = len(body)

    def _send_parts(self, result: Any) -> None:
        if isinstance(result, list | tuple) and not self._head_sent:
            # Its length is known even though the app did not say it.
            head = self._require_head()
            if head.length is None and not head.bodiless:
                head.length = sum(map(len, result))
                head.lines.append(b"Content-Length: %d\r\n" % head.length)
        for part in result:
            if part:  # an empty block must not send the head: the app may still change it
                self._send_part(part)
            elif not isinstance(part, bytes):
                raise TypeError(f"the app must yield bytes, got {type(part).__name__}")
        self._end()

    def _send_part(self, data: bytes) -> None:
        prefix = b"" if self._head_sent else self._open()
        if self._remaining is not None:
            if len(data) > self._remaining:
                data = data[: self._remaining]  # RFC 9110 section 8.6: never more than was promised
            self._remaining -= len(data)
        if self._head_request or (self._head is not None and self._head.bodiless):
            data = b""
        if data:
            self.sent += len(data)
            if self._chunked:
                data = response.chunk(data)
        if prefix or data:
            self._send(prefix + data if prefix else data)

    def _end(self) -> None:
        """The app's iterable has ended."""
        if not self._head_sent:
            head = self._require_head()
            if head.length is None and not head.bodiless and not self._head_request:
                head.length = 0
                head.lines.append(b"Content-Length: 0\r\n")
            self._send(self._open())
        bodiless = self._head_request or (self._head is not None and self._head.bodiless)
        if self._chunked and not bodiless:
            self._send(response.LAST_CHUNK)
        elif self._remaining and not bodiless:
            self.keep_alive = False  # shorter than promised: only the closed connection tells

    def _open(self) -> bytes:
        """The head of an answer whose body comes in parts."""
        head = self._require_head()
        self._remaining = head.length
        if not head.bodiless and head.length is None:
            if self._http10:
                self.keep_alive = False
            else:
                self._chunked = True
                head.lines.append(b"Transfer-Encoding: chunked\r\n")
        self._add_date_server(head)
        if head.close:
            self.keep_alive = False
        if not self.keep_alive:
            head.lines.append(b"Connection: close\r\n")
        elif self._http10:
            head.lines.append(b"Connection: keep-alive\r\n")
        head.lines.append(b"\r\n")
        self._head_sent = True
        return b"".join(head.lines)

    def _add_date_server(self, head: response.Head) -> None:
        for line in self._date_server.splitlines(keepends=True):
            if not (head.has_date if line.startswith(b"Date") else head.has_server):
                head.lines.append(line)

    def _require_head(self) -> response.Head:
        if self._head is None:
            raise AssertionError("the app returned without calling start_response")
        return self._head

    def _send(self, data: bytes) -> None:
        try:
            self._transport.send(data)
        except OSError as error:
            raise ClientGone from error

    def _fail(self) -> None:
        """The app raised: a plain 500, or a cut if the answer had begun."""
        self.error = traceback.format_exc()
        self.keep_alive = False
        if self._head_sent:
            return
        self._head_sent = True
        self.status = "500 Internal Server Error"
        self.code = 500
        self.headers = []
        answer = response.plain_answer(self.status, "Internal Server Error\n", self._date_server)
        if self._head_request:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self.sent = 0 if self._head_request else 22
        self._send(answer)
