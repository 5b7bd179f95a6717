"""What the worker class `meinheld` does for each request.

The server calls the app through `MeinheldCalls.serve`. When the answer has been sent, or the request refused,
or an idle connection closed, it calls `MeinheldCalls.access`, as its access log. All that a request costs
more than with the server alone is in these two functions.
"""

import ctypes
import errno
import fcntl
import socket
import sys
import time
from collections.abc import Callable, Iterable
from time import monotonic_ns
from types import CodeType, FrameType, TracebackType
from typing import Any
from urllib.parse import quote

from meinheld import server

from ostler.logs.limiter import LimitedLog
from ostler.text import trace_of
from ostler.workers.base import Context
from ostler.workers.meinheld.answer_parts import LATE, SLICE, AnswerParts, plain_answer
from ostler.workers.meinheld.peers import PeerAddresses
from ostler.workers.refusals import log_refused
from ostler.workers.soft_interrupt import SoftInterrupts
from ostler.wsgi.environ import Environ, host_and_port, listener_environ
from ostler.wsgi.forked import is_forked, leave_answered
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker

# What the kernel takes of answers at once, whatever its settings are, and what an answer's head may take.
_ROOM, _HEAD = 8192, 1024
# Where the type of `wsgi.file_wrapper` says that it is from; the kernel sends such a file in one go.
_SERVERS = "meinheld"
# Errors by which the server notices that a client has gone, or that `abandon` has closed its listeners.
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENOTSOCK)
# What RFC 3986 section 3.3 allows in a path.
_PATH_SAFE = "/:@!$&'()*+,;=~"
_OURS = "ostler."
# By which rule the server refuses a request, as far as its status says so. It gives no reasons.
_RULES = {
    408: "header_timeout",
    411: "content_length",
    413: "limit_request_body",
    414: "limit_request_line",
    431: "limit_request_fields",
    501: "method",
    505: "version",
}
_REASONS = {
    400: "meinheld gives no reason: malformed, a line or a field of more than 8 KB, or more than 129 fields",
    413: "the body is too large (the setting limit_request_body)",
}

# The codes of all `serve` functions, by which the frames that have called the app are known.
_SERVE: set[CodeType] = {AnswerParts.__next__.__code__}


class MeinheldCalls:
    """A worker's requests.

    Args:
        context: of the worker class.
        soft_interrupts: of the worker.
        look: reads what has come; called when the server has refused what is no request; True if that came
            from our own connection.

    Attributes:
        serve: the app, as the server is to call it.
        access: called by the server after each request with its environ, and with one of a connection that
            ended, or sent no request.
        error: called by the server with what the app raised, and with its own errors.
        flush: write the access log.
        look_soon: have `look` called when the request in the app has been answered; for signal handlers.
        settle: called once a second from outside the app.
    """

    def __init__(self, context: Context, soft_interrupts: SoftInterrupts, look: Callable[[], bool]) -> None:
        # One set of variables for all of these functions: attributes would cost more.
        app, log, access_log = context.app, context.log, context.access
        quota, on_quota = context.quota, context.on_quota
        slot = context.accounting.thread_slot(0)
        begin, leave_app, count, refused = slot.begin, slot.leave_app, slot.count, slot.refused
        extend, errors = soft_interrupts.extend, log.errors or sys.stderr
        # The request that was given to the app last and has not been answered; answers given.
        serving: Environ | None = None
        answered = 0
        message_waits = flushing = False
        limited = LimitedLog(log, time.monotonic)
        # Why the answer to the present request was cut: a status, or 0.
        cut = 0
        name, port = _server_name(context.listeners)
        peers = PeerAddresses(context.listeners)
        correct_peer = peers.correct if peers.needed else None
        # By descriptor: bytes of answers since its connection was made to block.
        unsent: dict[int, int] = {}
        headers: list[tuple[str, str]] = []
        keep_headers = "}o)" in context.settings.access_log_format and access_log is not None

        def serve(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            nonlocal serving, cut
            environ["SERVER_NAME"] = name
            environ["SERVER_PORT"] = port
            if not port and "HTTP_HOST" in environ:  # a Unix socket
                https = environ["wsgi.url_scheme"] == "https"
                if (server_names := host_and_port(environ["HTTP_HOST"], https)) is not None:
                    environ["SERVER_NAME"], environ["SERVER_PORT"] = server_names
            environ["ostler.extend_deadline"] = extend
            environ["wsgi.errors"] = errors
            if correct_peer is not None and not correct_peer(environ):
                start_response("403 Forbidden", [("Content-Length", "0")])
                return []
            if keep_headers:
                start_response = keeping(start_response)
            serving, cut = environ, 0
            # Of a request whose app lets others run, nothing is shown any more.
            begin(
                environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1", "replace"), monotonic_ns()
            )
            try:
                result: Iterable[bytes] = app(environ, start_response)
                if is_forked():
                    leave_answered()
                fd = environ["meinheld.client"].get_fd()
                make_blocking(fd, result)
            except DeadlineExceeded as late:
                fields, body = plain_answer(LATE)
                try:
                    start_response(LATE, fields)
                except TypeError:
                    raise late from None  # it has begun to answer
                return [body]
            kind = type(result)
            if kind is list and len(result) == 1 and len(result[0]) <= SLICE:  # type: ignore[arg-type, index]
                return result
            if kind.__module__ == _SERVERS:
                return result
            return AnswerParts(result, slot, fd, start_response, failed, note_cut)

        def note_cut(status: str) -> None:
            nonlocal cut
            cut = int(status[:3])

        def make_blocking(fd: int, result: Iterable[bytes]) -> None:
            """Make a connection one whose writes block, before one of them may have to."""
            total = _ROOM
            if type(result) is list and len(result) == 1:
                # Another connection may have had this number before. A new one has all of its room.
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
            nonlocal serving, answered, quota, cut
            if environ is not serving:
                other(environ)
            else:
                serving = None
                if started := slot.started:
                    took = monotonic_ns() - started
                    leave_app()
                else:
                    took = max(0, environ["REQUEST_TIME"] * 1_000_000)  # by the wall clock
                # If the head could not be sent, the number of bytes is negative.
                if cut:
                    environ["STATUS_CODE"], cut = cut, 0
                count(environ["STATUS_CODE"], max(0, environ["SEND_BYTES"]), took)
                if access_log is not None:
                    write(environ, took)
                if quota:
                    answered += 1
                    if answered == quota:
                        quota = on_quota(answered) or 0
            if message_waits:
                read_message()

        def other(environ: Environ) -> None:
            """A request whose app let others run, one that was refused, or a connection's end."""
            status = environ["STATUS_CODE"]
            if "ostler.extend_deadline" in environ:
                # Its time in the app is not known.
                refused(status, max(0, environ["SEND_BYTES"]))
                if access_log is not None:
                    write(environ, environ["REQUEST_TIME"] * 1_000_000)
            elif status == 0:
                # The server has made this environ for the log, and never frees it.
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(environ))
            elif not look():
                report(environ, status)
                if access_log is not None:
                    if correct_peer is not None:
                        environ["REMOTE_ADDR"] = ""  # not certainly this client's
                    access_log.refused(environ, b"", str(status), max(0, environ["SEND_BYTES"]))
                    flush_soon()
                # As above, but it may be one that is freed.
                environ.clear()

        def report(environ: Environ, status: int) -> None:
            rule = _RULES.get(status, "other")
            refused(status, 0, rule)
            # As below: elsewhere the address is not certainly this client's.
            client = str(environ.get("REMOTE_ADDR", "")) if correct_peer is None else "?"
            log_refused(limited, client, status, rule, _REASONS.get(status, "meinheld gives no reason"))

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

        def look_soon() -> None:
            nonlocal message_waits
            message_waits = True

        def read_message() -> None:
            nonlocal message_waits
            message_waits = False
            look()

        def settle() -> None:
            # This runs although a request is in the app: its app lets others run, and so it does not hang.
            leave_app()
            limited.report()

        def failed(_kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            nonlocal cut
            if isinstance(error, (DeadlineExceeded, QuitWorker)):
                return  # logged elsewhere
            if isinstance(error, OSError) and trace is None:
                # The server's own, not the app's.
                late = error.errno == errno.EINTR and slot.overdue == slot.started
                if serving is not None and not cut and (late or error.errno in _GONE):
                    cut = 504 if late else 499
                if error.errno not in _GONE and not late:
                    log.error("meinheld", problem=str(error))
                return
            if trace is not None and trace.tb_frame.f_code in _SERVE:
                trace = trace.tb_next
            log.error(
                "request_failed",
                method=slot.method,
                path=slot.target.decode("latin-1"),
                traceback=trace_of(error, trace),
            )

        _SERVE.add(serve.__code__)
        self.serve = serve
        self.access = access
        self.error = failed
        self.flush = flush
        self.look_soon = look_soon
        self.settle = settle


def is_in_app(frame: FrameType | None) -> bool:
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
    """SERVER_NAME and SERVER_PORT, which are the same for all requests."""
    for listener in listeners:
        environ = listener_environ({}, listener.getsockname())
        return environ["SERVER_NAME"], environ["SERVER_PORT"]
    return "localhost", "80"
