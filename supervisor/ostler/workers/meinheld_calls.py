"""What the worker class `meinheld` does for each request.

The server calls the app through `Calls.serve`, and when the answer has been sent, or the request refused, or
an idle connection closed, `Calls.access`, as its access log. All that a request costs more than with the
server alone is in these two.
"""

import ctypes
import errno
import fcntl
import socket
import sys
from collections.abc import Callable, Iterable
from threading import get_ident
from time import monotonic_ns
from types import CodeType, FrameType, TracebackType
from typing import Any
from urllib.parse import quote

from meinheld import server

from ostler.scoreboard import layout
from ostler.text import trace_of
from ostler.workers.base import Context
from ostler.workers.interrupt import Deadlines
from ostler.workers.lane import QUICK, QUICK_NS, status_class
from ostler.wsgi.environ import Environ, listener_environ
from ostler.wsgi.exchange import DeadlineExceeded, QuitWorker

_LATE = b"Gateway Timeout\n"
_LATE_FIELDS = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(_LATE))))
# What the kernel takes of answers at once, whatever its settings are, and what an answer's head may take.
_ROOM, _HEAD = 8192, 1024
# How the server learns that a client has gone, or that `abandon` has taken its listeners away.
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENOTSOCK)
# What RFC 3986 section 3.3 allows in a path.
_PATH_SAFE = "/:@!$&'()*+,;=~"
_OURS = "ostler."

# The codes of all `serve` functions: what tells that a frame is below the app's.
_SERVE: set[CodeType] = set()


class Calls:
    """A worker's requests.

    Args:
        context: of the worker class.
        deadlines: of the worker.
        look: called when the server has met something that is no request; True if that was from us.

    Attributes:
        serve: the app, as the server is to call it.
        access: called by the server after each request with its environ, and with one of a connection that
            ended, or sent no request.
        error: called by the server with what the app raised, and with its own errors.
        flush: write the access log.
        attend: look when the request in the app has been answered.
        settle: called once a second from outside the app.
    """

    def __init__(self, context: Context, deadlines: Deadlines, look: Callable[[], bool]) -> None:
        # One set of variables for all of these functions: attributes would cost more.
        app, log, access_log = context.app, context.log, context.access
        quota, on_quota = context.quota, context.on_quota
        words, text = context.cell.lane(0)
        words[layout.IDENT] = get_ident()
        STARTED, BYTES_SENT = layout.STARTED, layout.BYTES_SENT  # noqa: N806 - constants, but quicker
        STATUS_CLASSES, HISTOGRAM = layout.STATUS_CLASSES, layout.HISTOGRAM  # noqa: N806
        extend, errors = deadlines.extend, log.errors or sys.stderr
        # The request that was given to the app last and has not been answered; the request that the lane
        # names; answers given.
        serving: Environ | None = None
        shown_method = shown_path = ""
        answered = 0
        attended = flushing = False
        name, port = _server_name(context.listeners)
        peers = _Peers(context.listeners)
        peer = peers.tell if peers.needed else None
        # By descriptor: bytes of answers since its connection was told to wait.
        unsent: dict[int, int] = {}
        headers: list[tuple[str, str]] = []
        keep_headers = "}o)" in context.settings.access_log_format and access_log is not None

        def serve(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            nonlocal serving
            environ["SERVER_NAME"] = name
            environ["SERVER_PORT"] = port
            environ["ostler.extend_deadline"] = extend
            environ["wsgi.errors"] = errors
            if peer is not None and not peer(environ):
                start_response("403 Forbidden", [("Content-Length", "0")])
                return []
            if environ["PATH_INFO"] != shown_path or environ["REQUEST_METHOD"] != shown_method:
                show(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            if keep_headers:
                start_response = keeping(start_response)
            serving = environ
            words[STARTED] = monotonic_ns()
            try:
                result: Iterable[bytes] = app(environ, start_response)
                make_wait(environ["meinheld.client"].get_fd(), result)
                return result
            except DeadlineExceeded as late:
                try:
                    start_response("504 Gateway Timeout", list(_LATE_FIELDS))
                except TypeError:
                    raise late from None  # it has begun to answer
                return [_LATE]

        def show(method: str, path: str) -> None:
            nonlocal shown_method, shown_path
            # A request whose app lets others run may be there.
            words[STARTED] = 0
            shown_method, shown_path = method, path
            method_text = method.encode("latin-1", "replace")[: layout.METHOD_SIZE]
            path_text = path.encode("latin-1", "replace")[: layout.PATH_SIZE]
            text[: len(method_text)] = method_text
            text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path_text)] = path_text
            words[layout.METHOD_LENGTH] = len(method_text)
            words[layout.PATH_LENGTH] = len(path_text)

        def make_wait(fd: int, result: Iterable[bytes]) -> None:
            """Make a connection one whose writes wait, before it may have to."""
            total = _ROOM
            if type(result) is list and len(result) == 1:
                # Which connection has this number is not known; a new one has all of its room, at least.
                total = unsent.get(fd, 0) + _HEAD + len(result[0])
            if total >= _ROOM:
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)
                total = 0
            unsent[fd] = total

        def keeping(start_response: Callable[..., Any]) -> Callable[..., Any]:
            def start(status: str, fields: list[tuple[str, str]], *exc_info: Any) -> Any:
                headers[:] = fields
                return start_response(status, fields, *exc_info)

            return start

        def access(environ: Environ) -> None:
            nonlocal serving, answered
            if environ is not serving:
                other(environ)
            else:
                serving = None
                if started := words[STARTED]:
                    took = monotonic_ns() - started
                    words[STARTED] = 0
                else:
                    took = max(0, environ["REQUEST_TIME"] * 1_000_000)  # by the wall clock
                words[STATUS_CLASSES + status_class(environ["STATUS_CODE"])] += 1
                words[HISTOGRAM + (QUICK[took >> 10] if took < QUICK_NS else layout.bucket_of(took))] += 1
                # A head that could not be sent makes it negative.
                if (sent := environ["SEND_BYTES"]) > 0:
                    words[BYTES_SENT] += sent
                if access_log is not None:
                    write(environ, took)
                if quota:
                    answered += 1
                    if answered == quota:
                        on_quota(answered)
            if attended:
                attend_now()

        def other(environ: Environ) -> None:
            """A request whose app let others run, one that was refused, or a connection's end."""
            status = environ["STATUS_CODE"]
            if "ostler.extend_deadline" in environ:
                # Its time in the app is not known.
                words[STATUS_CLASSES + status_class(status)] += 1
                words[BYTES_SENT] += max(0, environ["SEND_BYTES"])
                if access_log is not None:
                    write(environ, environ["REQUEST_TIME"] * 1_000_000)
            elif status == 0:
                # The server has made this environ for the log, and would never give it back.
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(environ))
            elif not look():
                words[STATUS_CLASSES + status_class(status)] += 1
                if access_log is not None:
                    if peer is not None:
                        environ["REMOTE_ADDR"] = ""  # not certainly this client's
                    access_log.refused(environ, b"", str(status), max(0, environ["SEND_BYTES"]))
                    flush_soon()
                # As above, but it may be one that is given back.
                environ.clear()

        def write(environ: Environ, took: int) -> None:
            target = quote(environ["PATH_INFO"], _PATH_SAFE, "latin-1")
            if query := environ.get("QUERY_STRING"):
                target = f"{target}?{query}"
            access_log.answered(  # type: ignore[union-attr]
                environ["REQUEST_METHOD"],
                target,
                environ["SERVER_PROTOCOL"],
                environ,
                str(environ["STATUS_CODE"]),
                headers,
                max(0, environ["SEND_BYTES"]),
                took,
            )
            flush_soon()

        def flush_soon() -> None:
            nonlocal flushing
            if not flushing:
                flushing = True
                server.schedule_call(0, flush)  # before it waits for more

        def flush() -> None:
            nonlocal flushing
            flushing = False
            if access_log is not None:
                access_log.flush()

        def attend() -> None:
            nonlocal attended
            attended = True

        def attend_now() -> None:
            nonlocal attended
            attended = False
            look()

        def settle() -> None:
            # We would not be here did the app not let others run: it does not hang.
            words[STARTED] = 0

        def failed(_kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if isinstance(error, (DeadlineExceeded, QuitWorker)):
                return  # told elsewhere
            if isinstance(error, OSError) and trace is None:
                # The server's own, not the app's.
                late = error.errno == errno.EINTR and words[layout.OVERDUE] == words[STARTED]
                if error.errno not in _GONE and not late:
                    log.error("meinheld", problem=str(error))
                return
            if trace is not None and trace.tb_frame.f_code in _SERVE:
                trace = trace.tb_next
            log.error(
                "request_failed",
                method=shown_method,
                path=shown_path,
                traceback=trace_of(error, trace),
            )

        _SERVE.add(serve.__code__)
        self.serve = serve
        self.access = access
        self.error = failed
        self.flush = flush
        self.attend = attend
        self.settle = settle


def serves(frame: FrameType | None) -> bool:
    """Whether what a signal interrupted is the app, or what an app has returned and is asked for parts."""
    if frame is None:
        return False
    while frame is not None:
        if frame.f_code in _SERVE:
            return True
        if frame.f_globals.get("__name__", "").startswith(_OURS):
            return False
        # Each request has a greenlet of its own, and the frames that called it are not seen from there.
        frame = frame.f_back
    return True


def _server_name(listeners: list[socket.socket]) -> tuple[str, str]:
    """SERVER_NAME and SERVER_PORT: the server tells all requests the same."""
    for listener in listeners:
        environ = listener_environ({}, listener.getsockname())
        return environ["SERVER_NAME"], environ["SERVER_PORT"]
    return "localhost", "80"


class _Peers:
    """Clients' addresses: what the server says is that of the connection accepted last, and is only IPv4.

    Args:
        listeners: the worker's.

    Attributes:
        needed: unless all clients are this machine.
    """

    def __init__(self, listeners: list[socket.socket]) -> None:
        names = [listener.getsockname() for listener in listeners]
        self.needed = any(not (isinstance(name, tuple) and name[0].startswith("127.")) for name in names)
        self._paths = {name for name in names if not isinstance(name, tuple)}
        # By descriptor: making a socket costs more than asking one. None of them ever closes its descriptor.
        self._sockets: dict[int, socket.socket] = {}

    def tell(self, environ: Environ) -> bool:
        """Correct the client's address; False if it came by a way that is not for clients."""
        fd = environ["meinheld.client"].get_fd()
        try:
            sock = self._sockets[fd]
        except KeyError:
            # The family only says how long an address may be, and this one's is the longest.
            sock = self._sockets[fd] = _Lent(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        try:
            name = sock.getpeername()
        except OSError:
            name = ""  # it has gone
        if type(name) is tuple:
            environ["REMOTE_ADDR"] = name[0]
            return True
        environ["REMOTE_ADDR"] = ""
        environ.pop("REMOTE_PORT", None)
        try:
            return isinstance(here := sock.getsockname(), tuple) or here in self._paths
        except OSError:
            return False


class _Lent(socket.socket):
    """A descriptor that belongs to the server."""

    def __del__(self) -> None:
        self.detach()
