"""One request and its response: the only place that calls a WSGI app.

`Exchange.run` calls the app and sends its answer through the transport. A small answer takes one send. Errors
of the app are handled here: the client gets a 500 as long as nothing was sent; later the connection is cut,
so that the client can detect an incomplete answer.
"""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from ostler.http1 import response
from ostler.http1.errors import ResponseError
from ostler.http1.request import Request
from ostler.text import trace_of
from ostler.wsgi import forked
from ostler.wsgi.environ import Environ
from ostler.wsgi.file_wrapper import FileWrapper, regular_file
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker, interruptible

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

JOIN_LIMIT = 64 * 1024
"""Head and a body of at most this many bytes are sent together. That saves a system call; above it copying
costs more.
"""

_EVENT_STREAM = "text/event-stream"
_NO_HEAD = "the app returned without calling start_response"
_FAILED = "500 Internal Server Error"
_LATE = "504 Gateway Timeout"


class Transport(Protocol):
    """Sends an answer to the client; keeps what the socket does not accept yet."""

    def send(self, data: bytes, /) -> None:
        """Send what the socket accepts and keep the rest; may wait while too much is kept.

        Raises:
            ClientGone: the connection broke.
        """
        ...

    def send_file(self, fd: int, offset: int, count: int, /) -> None:
        """As `send`, for a range of a regular file, with sendfile(2) where possible.

        The caller may close the descriptor as soon as this returns.
        """
        ...

    def note_part(self, silent: bool, /) -> None:
        """A part of an answer was sent, and more of it follows: the request makes progress.

        silent: the next part may come at any time, because the answer is an event stream.
        """
        ...


class ClientGone(ConnectionError):
    """The client closed the connection before the request or the answer was complete."""


class Exchange:
    """One request and its response.

    Args:
        request: the request.
        transport: sends the answer.
        date_server: the lines `Server` and `Date`, in this order.
        keep_alive: whether the connection may stay open afterwards.

    Attributes:
        status: the status line's text, e.g. `200 OK`; code: its number. Of an answer that was cut after its
            head was sent they say why, for those who count and log it: 500 the app raised, 504 its deadline.
        sent: bytes of the body that were sent.
        keep_alive: whether the connection can stay open.
        error: the traceback of the app's exception, if it raised.
        headers: those that the app passed to start_response.
    """

    # Defaults are class attributes: an attribute that a request does not change costs it no time.
    status = ""
    code = 500
    sent = 0
    error: str | None = None
    headers: response.HeaderList = []  # noqa: RUF012 - replaced, never changed
    _lines: list[bytes] | None = None
    _length: int | None = None
    _flags = 0
    _head_sent = False
    _ended = False
    _chunked = False
    _is_event_stream = False
    _remaining: int | None = None

    def __init__(self, request: Request, transport: Transport, date_server: bytes, keep_alive: bool) -> None:
        self._request = request
        self._transport = transport
        self._date_server = date_server
        self.keep_alive = keep_alive

    def adopt(
        self,
        status: str,
        headers: response.HeaderList,
        code: int,
        head: bytes,
        length: int | None,
        is_whole: bool,
        sent: int,
    ) -> None:
        """Go on with an exchange in which the C extension has taken the app's call of start_response.

        Args:
            head, length: as they are encoded, and the Content-Length.
            is_whole: the whole answer was sent, `sent` bytes of a body; nothing else was sent before.
        """
        self.status, self.headers, self.code = status, headers, code
        self._lines, self._length = [head], length
        self._ended = self._transport is None
        if is_whole:
            self._head_sent, self.sent, self._remaining = True, sent, 0

    # -- called by the app -------------------------------------------------------------------------------

    def start_response(
        self, status: str, headers: response.HeaderList, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's start_response."""
        if exc_info:
            if self._head_sent:
                error = exc_info[1] or AssertionError("the answer has begun")
                try:
                    raise error.with_traceback(exc_info[2])
                finally:
                    del error, exc_info  # the traceback refers to this frame
            exc_info = None
        elif self._lines is not None:
            raise AssertionError("start_response was called twice without exc_info")
        if type(headers) is not list:
            headers = list(headers)  # an iterator could be read only once
        self._lines, self.code, self._length, self._flags = response.encode_head(status, headers)
        self.status = status
        self.headers = headers
        return self._write

    def _write(self, data: bytes) -> None:
        """PEP 3333's write(): sends at once, for apps that can't return an iterable."""
        data = _as_bytes(data)
        if self._ended:
            raise AssertionError("write() was called after the answer had ended")
        if data:
            if self._remaining == 0:
                raise ResponseError("write() was called with more bytes than Content-Length announces")
            self._send_part(data)

    # -- called by the worker ----------------------------------------------------------------------------

    @interruptible
    def run(self, app: App, environ: Environ) -> None:
        """Call the app and send its answer.

        Raises:
            ClientGone: the connection broke. `close()` of the result was called.
            DeadlineExceeded: it came after the answer had begun. The sending may have been interrupted
                anywhere, so bytes that are kept must not be sent. `close()` was called.
        """
        result: Any = None
        try:
            result = app(environ, self.start_response)
            kind = type(result)
            lines, length = self._lines, self._length
            if (
                kind is list
                and len(result) == 1
                and lines is not None
                and type(body := result[0]) is bytes
                and len(body) == length
                and length <= JOIN_LIMIT
                and self.keep_alive
                and (line := self._request.line).ordinary
                and line.method != "HEAD"
                and not (self._flags or self._head_sent)
            ):
                # Nearly every answer: the case of `_send_whole` without any special handling.
                self._head_sent = True
                self.sent = length
                self._transport.send(b"".join((*lines, self._date_server, b"\r\n", body)))
            elif (kind is list or kind is tuple) and not self._head_sent:
                self._send_whole(result[0] if len(result) == 1 else b"".join(result))
            elif (
                kind is FileWrapper
                and not self._head_sent
                and (file := regular_file(result.file)) is not None
            ):
                self._send_file(*file)
            else:
                self._send_parts(result)
        except (QuitWorker, ClientGone):
            self.keep_alive = False
            self._close(result)
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too: an app must not end its worker
            if forked.is_forked():
                forked.leave(error)
            try:
                self._answer_500_or_504(error)
            finally:
                self._close(result)
        else:
            if kind is not list:
                self._close(result)
        self._ended = True

    def _close(self, result: Any) -> None:
        """PEP 3333: close() is called, whatever happened."""
        self._ended = True
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        except QuitWorker:
            raise
        except BaseException as error:  # noqa: BLE001 - the answer is sent; only the log is left
            self.error = self.error or trace_of(error)

    def _send_whole(self, body: bytes) -> None:
        """The usual answer: one block, all of which is known."""
        lines = self._lines
        if lines is None:
            raise AssertionError(_NO_HEAD)
        if type(body) is not bytes:
            body = _as_bytes(body)
        length = len(body)
        if self._length != length:
            if self._length is not None and not self._bodiless:
                if body:
                    self._send_part(body)
                self._end()
                return
            # The length is unknown if an app omits the body of an answer to HEAD.
            unknown = not length and self._request.method == "HEAD"
            if self._length is None and not self._flags & response.BODILESS and not unknown:
                # The answer to HEAD has the length that GET would have (RFC 9110 section 9.3.2).
                lines.append(b"Content-Length: %d\r\n" % length)
        if self._request.method == "HEAD" or self._flags & response.BODILESS:
            body = b""
        if self._flags or not self.keep_alive or self._request.protocol != "HTTP/1.1":
            self._close_head(lines)
        else:
            lines += (self._date_server, b"\r\n")
        if length <= JOIN_LIMIT:
            lines.append(body)
            data = b"".join(lines)
            self._head_sent = True
            self._transport.send(data)
        else:
            self._head_sent = True
            self._transport.send(b"".join(lines))
            self._transport.send(body)
        self.sent = len(body)

    def _close_head(self, lines: list[bytes]) -> None:
        """Add the server's own lines, and the empty line."""
        flags = self._flags
        if not flags:
            lines.append(self._date_server)
        else:
            server, date = self._date_server.splitlines(keepends=True)
            if not flags & response.HAS_SERVER:
                lines.append(server)
            if not flags & response.HAS_DATE:
                lines.append(date)
            if flags & response.CLOSE:
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n\r\n")
        elif self._request.protocol == "HTTP/1.0":
            lines.append(b"Connection: keep-alive\r\n\r\n")
        else:
            lines.append(b"\r\n")

    def _send_parts(self, result: Any) -> None:
        for answer in result:
            part = _as_bytes(answer)
            if part:  # an empty block must not send the head: the app may still change it
                if self._remaining == 0:
                    break  # more than Content-Length announces: it could be endless
                self._send_part(part)
                if self._bodiless:
                    break  # the client gets no more than the head
        self._end()

    def _send_file(self, fd: int, offset: int, count: int) -> None:
        """Send a file from its current position to its end, or as many bytes as Content-Length announces."""
        if self._lines is None:
            raise AssertionError(_NO_HEAD)
        if self._length is None and not self._flags & response.BODILESS:
            self._lines.append(b"Content-Length: %d\r\n" % count)
            self._length = count
        self._transport.send(self._open())
        remaining = self._length or 0
        if not self._bodiless and (count := min(count, remaining)):
            self.sent += count
            self._remaining = remaining - count
            self._transport.send_file(fd, offset, count)
        self._end()

    def _send_part(self, data: bytes) -> None:
        prefix = b"" if self._head_sent else self._open()
        remaining = self._remaining
        if remaining is not None:
            if len(data) > remaining:
                data = data[:remaining]  # RFC 9110 section 8.6: never more than announced
            remaining -= len(data)
        if self._bodiless:
            data = b""
        if data:
            self.sent += len(data)
            if self._chunked:
                data = response.chunk(data)
        if prefix or data:
            self._transport.send(prefix + data if prefix else data)
        self._remaining = remaining
        if remaining != 0 or not prefix:  # an answer that is all in one part needs no more time
            self._transport.note_part(self._is_event_stream)

    def _end(self) -> None:
        """The app's iterable has ended."""
        if not self._head_sent:
            if self._lines is not None and self._length is None and not self._bodiless:
                self._length = 0
                self._lines.append(b"Content-Length: 0\r\n")
            self._transport.send(self._open())
        if self._bodiless:
            return
        if self._chunked:
            self._transport.send(response.LAST_CHUNK)
        elif self._remaining:
            self.keep_alive = False  # the body is too short: only a closed connection shows that

    @property
    def head_sent(self) -> bool:
        """Whether the head was sent: it is too late for another answer."""
        return self._head_sent

    @property
    def _bodiless(self) -> bool:
        return self._request.method == "HEAD" or bool(self._flags & response.BODILESS)

    def _open(self) -> bytes:
        """The head of an answer whose body comes in parts."""
        lines = self._lines
        if lines is None:
            raise AssertionError(_NO_HEAD)
        self._remaining = self._length
        if self._length is None and not self._flags & response.BODILESS:
            if self._request.protocol == "HTTP/1.0":
                self.keep_alive = False
            else:
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
        self._is_event_stream = any(
            name.lower() == "content-type" and value.lower().startswith(_EVENT_STREAM)
            for name, value in self.headers
        )
        self._close_head(lines)
        self._head_sent = True
        return b"".join(lines)

    def give_up(self) -> None:
        """Count the request as timed out: `run` did not end by itself, and no answer can be sent any more.

        An answer that has begun was counted when it was cut, or is whole: a hook was late.
        """
        if not self._head_sent:
            self._head_sent = True
            self.code, self.status = int(_LATE[:3]), _LATE

    def _answer_500_or_504(self, error: BaseException) -> None:
        """The app raised: answer with a plain 500 or 504, or cut the connection if the answer has begun."""
        self.keep_alive = False
        late = isinstance(error, DeadlineExceeded)
        if not late:  # the supervisor has logged that, with the stack
            self.error = trace_of(error)
        begun, self._head_sent = self._head_sent, True
        if not (begun and self._remaining == 0):  # else the client has all of the answer
            self.status = _LATE if late else _FAILED
            self.code = int(self.status[:3])
        if begun:
            if late:
                try:
                    raise error
                finally:
                    del error  # as in start_response
            return
        self.headers = []
        text = f"{self.status[4:]}\n"
        answer = response.plain_answer(self.status, text, self._date_server)
        if self._request.method == "HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        else:
            self.sent = len(text)
        self._transport.send(answer)


def _as_bytes(part: Any) -> bytes:
    """PEP 3333 requires bytes; other bytes-like objects are copied.

    They could change before they are sent.
    """
    if isinstance(part, bytes):
        return part
    if isinstance(part, bytearray | memoryview):
        return bytes(part)
    raise TypeError(f"the app must answer with bytes, got {type(part).__name__}")
