"""The app as uvicorn calls it: each request is shown in the scoreboard, counted, and ended when overdue.

A request is over with the last part of its answer. What an app does afterwards, as background tasks of
Starlette's do, keeps a worker from leaving but is nobody's request. It has the deadline that the supervisor
gives all requests, until its answer begins; each part of an answer in parts gives it `timeout` from then.
Websockets and event streams live as long as they like.

A request that is overdue is ended where it waits: its task is cancelled. If instead it computes, so that the
whole loop waits for it, the signal's handler raises in it. Which request the code under a signal belongs to
is known by a context variable, which tasks that a request starts inherit.
"""

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextvars import ContextVar
from http import HTTPStatus
from time import monotonic_ns
from types import FrameType
from typing import Any

from ostler.logs.access import AccessLog
from ostler.logs.lean import Log
from ostler.scoreboard import layout
from ostler.scoreboard.accounting import LONGEST
from ostler.scoreboard.writer import CellWriter
from ostler.settings.table import Settings
from ostler.text import frames_of, trace_of
from ostler.workers.lane import QUICK, QUICK_NS, status_class
from ostler.wsgi.exchange import DeadlineExceeded, QuitWorker

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTEND = "ostler.extend_deadline"
"""Key in the scope, as in a WSGI app's environ: `scope[EXTEND](seconds)`."""

_CLOSE = (b"connection", b"close")
_LATE = b"Gateway Timeout\n"
_EVENT_STREAM = b"text/event-stream"
# Code that must not be interrupted halfway: what it has begun, it finishes.
_NOT_THE_APPS = ("ostler", "uvicorn", "asyncio", "uvloop", "websockets", "wsproto", "h11", "httptools")
_IS_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE

# Names of this module are found quicker than another's, and these are read for every request.
_STARTED, _STATUS_CLASSES, _BYTES_SENT, _HISTOGRAM = (
    layout.STARTED,
    layout.STATUS_CLASSES,
    layout.BYTES_SENT,
    layout.HISTOGRAM,
)

# STARTED of the request at hand. Not the request: timers of the loop keep contexts alive for seconds.
_current: ContextVar[int] = ContextVar("ostler.request", default=0)


class Lane:
    """One lane of the scoreboard: a request in flight. `hidden`: it only counts, in another's lane."""

    __slots__ = ("hidden", "method", "path", "request", "text", "words")

    def __init__(self, cell: CellWriter, number: int, ident: int, hidden: bool = False) -> None:
        self.words, self.text = cell.lane(number)
        self.words[layout.IDENT] = ident
        self.hidden = hidden
        self.method = ""
        self.path = b""
        self.request: Request | None = None

    def show(self, method: str, path: bytes) -> None:
        """Put a request's name into the scoreboard; only while nothing is in flight in the lane."""
        self.method, self.path = method, path
        if self.hidden:
            return
        name = method.encode("latin-1")[: layout.METHOD_SIZE]
        shown = path[: layout.PATH_SIZE]
        self.text[: len(name)] = name
        self.text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(shown)] = shown
        self.words[layout.METHOD_LENGTH] = len(name)
        self.words[layout.PATH_LENGTH] = len(shown)


class Request:
    """One request, or one websocket from its handshake to its end.

    Attributes:
        status: 0 before the answer begins.
        sent: bytes of the body.
        answered: the last part of the answer was sent, or will not be.
        overdue: it is being ended.
    """

    # Defaults stand here and not in __init__: what a request does not change costs it nothing.
    status = 0
    sent = 0
    answered = False
    overdue = False
    _headers: Iterable[tuple[bytes, bytes]] = ()
    _streams = False

    def __init__(self, requests: "Requests", lane: Lane, scope: Scope, send: Send) -> None:
        self._requests = requests
        self._scope = scope
        self._send = send
        self.lane = lane
        self.started = monotonic_ns()

    # -- what the app calls ------------------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI's `send` of a request. No coroutine of its own where nothing is to be done afterwards."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            self._headers = message.get("headers", ())
            if self._requests.closing:
                # uvicorn ends the connection behind an answer that says so.
                message = {**message, "headers": [*self._headers, _CLOSE]}
        elif kind == "http.response.body":
            if message.get("more_body"):
                return self._send_part(message)
            if self._streams:
                return self._send_last(message)
            # All in one: it never waits for the client, and what comes now is uvicorn's.
            if not self.answered:
                self.sent = len(message.get("body", b""))
                self._requests.end(self)
        return self._send(message)

    async def _send_part(self, message: Message) -> None:
        if not self._streams:
            self._streams = True
            if self._is_event_stream():
                self.extend_to(layout.NEVER)
        await self._send(message)
        self.sent += len(message.get("body", b""))
        if self._requests.timeout and not self.answered:
            self.extend_to(monotonic_ns() + self._requests.timeout)

    async def _send_last(self, message: Message) -> None:
        await self._send(message)
        if not self.answered:
            self.sent += len(message.get("body", b""))
            self._requests.end(self)

    async def send_on_websocket(self, message: Message) -> None:
        """ASGI's `send` of a websocket, or of the answer that refuses it."""
        await self._send(message)
        kind = message["type"]
        if kind == "websocket.send":
            self.sent += len(message.get("bytes") or message.get("text") or b"")
        elif kind == "websocket.accept":
            self.status = 101
        elif kind == "websocket.close":
            self.status = self.status or 403
        elif kind == "websocket.http.response.start":
            self.status = message["status"]

    def extend_to(self, until: int) -> None:
        """Have time up to then (CLOCK_MONOTONIC, ns) at least."""
        if self.lane.hidden:
            return
        words = self.lane.words
        if words[layout.EXTENDED_FOR] == self.started:
            until = max(until, words[layout.EXTENDED_UNTIL])
        # In this order: the supervisor reads them the other way round.
        words[layout.EXTENDED_UNTIL] = until
        words[layout.EXTENDED_FOR] = self.started

    # -- deadlines ---------------------------------------------------------------------------------------

    def _is_event_stream(self) -> bool:
        return any(
            name.lower() == b"content-type" and value.lower().startswith(_EVENT_STREAM)
            for name, value in self._headers
        )

    def interrupt(self, task: "asyncio.Task[Any] | None") -> None:
        """End it where it waits; called in the loop. `task`: the one that serves it."""
        if self.answered or (self.overdue and self.status):
            return
        if not self.overdue:
            self.note_overdue(stack_of(task), task)
        if task is not None:
            task.cancel(str(DeadlineExceeded()))

    def note_overdue(self, stack: str, task: "asyncio.Task[Any] | None") -> None:
        """Say once in the log where the request stands: the supervisor's dump shows the loop."""
        if not self.overdue:
            self.overdue = True
            age = (monotonic_ns() - self.started) / 1e9
            stacks = [stack, *self._stacks_of_others(task)]
            stack = "\n\n".join(stacks)
            self._requests.log.error("request_interrupted", **self.name(), age=age, stack=stack)

    def _stacks_of_others(self, own: "asyncio.Task[Any] | None") -> list[str]:
        """Of tasks that the request has started, such as those that some middlewares run the app in."""
        others: list[Any] = [task for task in asyncio.all_tasks(self._requests.loop) if task is not own]
        # Before Python 3.12 a task does not tell its context.
        return [
            stack_of(task)
            for task in others
            if hasattr(task, "get_context") and task.get_context().get(_current) == self.started
        ]

    async def give_up(self) -> None:
        """Answer that it took too long; the answer must not have begun."""
        if (task := asyncio.current_task()) is not None:
            while task.uncancel():
                pass  # the app is out of it; now there is something to be said
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(_LATE)).encode()),
            _CLOSE,
        ]
        await self.send({"type": "http.response.start", "status": 504, "headers": headers})
        await self.send({"type": "http.response.body", "body": _LATE})

    # -- what is said of it ------------------------------------------------------------------------------

    @property
    def client_is_gone(self) -> bool:
        """uvicorn's `send` is a method of what knows it."""
        return bool(getattr(getattr(self._send, "__self__", None), "disconnected", False))

    def name(self) -> dict[str, str]:
        """Its method and path, as fields for the log."""
        return {"method": self._scope.get("method", "WS"), "path": self._scope["path"]}

    def tell(self, access: AccessLog, took: int) -> None:
        """Put it into the access log."""
        scope = self._scope
        target = scope.get("raw_path", b"").decode("latin-1")
        if query := scope["query_string"].decode("latin-1"):
            target = f"{target}?{query}"
        try:
            status = f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            status = str(self.status)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._headers]
        protocol = f"HTTP/{scope['http_version']}"
        method = scope.get("method", "GET")
        access.answered(method, target, protocol, _environ(scope), status, headers, self.sent, took)


class Requests:
    """All requests of a worker.

    Args:
        app: an ASGI 3 app.
        cell: the worker's cell of the scoreboard.
        lanes: how many of its lanes are for requests; those that find none free are counted in the first.
        ident: the loop's thread; loop: what they are served in.
        flush_soon: called when there are lines in the access log's buffer.

    Attributes:
        closing: answers announce the end of their connection.
        count: of what uvicorn does, connections are counted in this lane.
        quitting: what fails from now on fails because the worker ends at once, which nobody wants to hear.
        told: the exception that the log has heard of, and uvicorn will speak of next.
        startup_error, startup_message: why the app's startup failed.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        cell: CellWriter,
        lanes: int,
        ident: int,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        access: AccessLog | None,
        quota: int,
        on_quota: Callable[[int], None],
        flush_soon: Callable[[], None],
    ) -> None:
        self.app = app
        self.loop = loop
        self._cell = cell
        self._most_lanes = lanes
        self._ident = ident
        self._lanes: list[Lane] = []
        self._free: list[Lane] = []
        self._overflow = Lane(cell, 0, ident, hidden=True)
        # The others are taken into use as they are needed: so the supervisor reads no more than that.
        cell.header[layout.SLOTS_IN_USE] = 1
        self._access = access
        self._quota = quota
        self._on_quota = on_quota
        self._flush_soon = flush_soon
        self._count = 0
        self._extend = self.extend_deadline
        self.log = log
        self.timeout = int(settings.timeout * 1_000_000_000)
        self.closing = settings.keepalive == 0
        self.count = self._overflow.words
        self.quitting = False
        self.told: BaseException | None = None
        self.startup_error: BaseException | None = None
        self.startup_message = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app, for uvicorn."""
        kind = scope["type"]
        if kind == "http":
            lane = self._free.pop() if self._free else self._another_lane()
            method, path = scope["method"], scope["raw_path"]
            if lane.path != path or lane.method != method:
                lane.show(method, path)
            request = lane.request = Request(self, lane, scope, send)
            if not lane.hidden:
                lane.words[_STARTED] = request.started
            scope[EXTEND] = self._extend
            _current.set(request.started)
            try:
                await self.app(scope, receive, request.send)
            except BaseException as error:
                if await self._failed(request, error):
                    raise
            else:
                if not request.answered:
                    self._left_unanswered(request)
        elif kind == "websocket":
            await self._serve_websocket(scope, receive, send)
        else:
            await self._live(scope, receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        lane = self._free.pop() if self._free else self._another_lane()
        lane.show("WS", scope.get("raw_path", b""))
        request = lane.request = Request(self, lane, scope, send)
        if not lane.hidden:
            lane.words[layout.STARTED] = request.started
            request.extend_to(layout.NEVER)
        scope[EXTEND] = self._extend
        _current.set(request.started)
        try:
            await self.app(scope, receive, request.send_on_websocket)
        except BaseException as error:
            # uvicorn's own only says that the client has gone.
            if not type(error).__module__.startswith("uvicorn."):
                self._tell_of(request, error)
            raise
        finally:
            request.status = request.status or 500
            self.end(request)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app's startup and shutdown; uvicorn does not tell why they failed."""

        async def listen(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self.startup_message = message.get("message", "")
            await send(message)

        try:
            await self.app(scope, receive, listen)
        except BaseException as error:
            self.startup_error = error
            raise

    # -- the ends of requests ----------------------------------------------------------------------------

    def end(self, request: Request) -> None:
        """It has been answered, or will not be."""
        ended = monotonic_ns()
        took = ended - request.started
        lane, words = request.lane, request.lane.words
        if not lane.hidden:
            words[_STARTED] = 0
            lane.request = None
            self._free.append(lane)
        request.answered = True
        status = request.status
        words[_STATUS_CLASSES + status_class(status)] += 1
        if status != 101:
            bucket = QUICK[took >> 10] if took < QUICK_NS else layout.bucket_of(took)
            words[_HISTOGRAM + bucket] += 1
        if lane.method == "HEAD":
            request.sent = 0  # uvicorn leaves it out
        words[_BYTES_SENT] += request.sent
        if self._access is not None:
            request.tell(self._access, took)
            self._flush_soon()
        if self._quota:
            self._count += 1
            if self._count >= self._quota:
                self._quota = 0
                self._on_quota(self._count)

    def _left_unanswered(self, request: Request) -> None:
        """The app returned before the last part of its answer: it has a defect, or its client is gone."""
        if not request.status:
            request.status = 499 if request.client_is_gone else 500
            if request.status == 500:
                self.log.error(
                    "request_failed", **request.name(), reason="the app returned without an answer"
                )
        self.end(request)

    async def _failed(self, request: Request, error: BaseException) -> bool:
        """The app raised; True if uvicorn is to answer with 500 or to end the connection.

        The caller raises it again, not this: its traceback would lead to the frame that refers to it.
        """
        if not request.overdue:
            self._tell_of(request, error)
            if not request.answered:
                request.status = request.status or 500
                self.end(request)
            return True
        if not request.status:
            await request.give_up()
            return False
        self.told = error
        if not request.answered:
            self.end(request)
        return True

    def _tell_of(self, request: Request, error: BaseException) -> None:
        self.told = error
        if self.quitting or isinstance(error, QuitWorker):
            return
        if isinstance(error, asyncio.CancelledError):
            self.log.warning("request_cut", **request.name(), reason="the worker leaves")
        else:
            trace = trace_of(error, _app_part(error))
            self.log.error("request_failed", **request.name(), traceback=trace)

    # -- deadlines ---------------------------------------------------------------------------------------

    def tasks(self) -> "dict[Request, asyncio.Task[Any]]":
        """The tasks that serve requests. Looked for when they are needed, which is hardly ever."""
        found: dict[Request, asyncio.Task[Any]] = {}
        for task in asyncio.all_tasks(self.loop):
            awaited: Any = task.get_coro()
            while awaited is not None:
                if getattr(awaited, "cr_code", None) in _SERVING:
                    frame = awaited.cr_frame
                    request = frame.f_locals.get("request") if frame is not None else None
                    if isinstance(request, Request):
                        found[request] = task
                    break
                awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
        return found

    def overdue(self) -> list[Request]:
        """The requests that the supervisor has marked; safe in a signal handler."""
        now = monotonic_ns()
        found = []
        for lane in list(self._lanes):
            words, request = lane.words, lane.request
            started = words[layout.STARTED]
            if request is None or not started or words[layout.OVERDUE] != started:
                continue
            # The app may have asked for time just now.
            if words[layout.EXTENDED_FOR] != started or words[layout.EXTENDED_UNTIL] <= now:
                found.append(request)
        return found

    def extend_deadline(self, seconds: float) -> None:
        """`scope["ostler.extend_deadline"]`: the request at hand has at least `seconds` from now.

        It never shortens a deadline. To be called by code that serves the request, in any task or thread.

        Raises:
            ValueError: that is no time.
            RuntimeError: no request is being served here.
        """
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"the deadline can't be extended by {seconds!r} seconds")
        started = _current.get()
        if not started:
            raise RuntimeError("extend_deadline was called where no request is served")
        if (request := self._find(started)) is not None:
            request.extend_to(monotonic_ns() + int(seconds * 1_000_000_000))

    def computing(self, frame: FrameType | None) -> Request | None:
        """The request whose code a signal has interrupted; None: it is not the app's, or must not be."""
        started = _current.get()
        while started and frame is not None:
            if frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_APPS:
                return None
            if frame.f_code.co_flags & _IS_ASYNC:
                return self._find(started)
            frame = frame.f_back
        return None

    def _find(self, started: int) -> Request | None:
        """The request in flight that began then; those that no lane shows have no deadline."""
        return next((lane.request for lane in self._lanes if lane.words[_STARTED] == started), None)

    def _another_lane(self) -> Lane:
        if len(self._lanes) == self._most_lanes:
            return self._overflow
        lane = Lane(self._cell, len(self._lanes), self._ident)
        self._lanes.append(lane)
        self._cell.header[layout.SLOTS_IN_USE] = len(self._lanes)
        return lane


# Whose local variable `request` says which one a task serves.
_SERVING = (Requests.__call__.__code__, Requests._serve_websocket.__code__)


def stack_of(task: "asyncio.Task[Any] | None") -> str:
    """Where a task waits, innermost last: the frames of the app's coroutines."""
    frames = []
    awaited: Any = task.get_coro() if task is not None else None
    while (frame := _first(awaited, "cr_frame", "ag_frame", "gi_frame")) is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("uvicorn", "ostler"):
            code = frame.f_code
            frames.append(traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name))
        awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
    return "".join(traceback.format_list(frames)).rstrip()


def stack_under(frame: FrameType | None) -> str:
    """The app's frames under a signal, innermost last."""
    frames = []
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_APPS:
        frames.append(traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return "".join(traceback.format_list(reversed(frames))).rstrip()


def _first(thing: Any, *names: str) -> Any:
    """The first of these attributes that is there and not None."""
    return next((found for name in names if (found := getattr(thing, name, None)) is not None), None)


def _app_part(error: BaseException) -> Any:
    """The traceback from the app's first frame on."""
    frames = frames_of(error)
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "") == __name__:
        frames = frames.tb_next
    return frames or frames_of(error)


def _environ(scope: Scope) -> dict[str, Any]:
    """What the access log may ask of a WSGI app's environ."""
    host, port = scope.get("client") or ("", "")
    environ: dict[str, Any] = {
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
        "REQUEST_METHOD": scope.get("method", "GET"),
        "SCRIPT_NAME": scope.get("root_path", ""),
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.url_scheme": scope["scheme"],
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ
