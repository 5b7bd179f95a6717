"""One request of an ASGI app, from its call to the last part of its answer."""

import asyncio
from collections.abc import Awaitable, Iterable
from time import monotonic_ns
from typing import Any, Protocol, TypeVar

from ostler.logs.worker_log import Log
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.asgi.framing import BODILESS, framed
from ostler.workers.asgi.interface import Message, Receive, Scope, Send
from ostler.workers.asgi.tasks import stack_of, tasks_of
from ostler.wsgi.interruption import DeadlineExceeded

CLOSE = (b"connection", b"close")
_LATE = b"Gateway Timeout\n"
_EVENT_STREAM = b"text/event-stream"


_Result = TypeVar("_Result")


class RequestOwner(Protocol):
    """What a request needs of the `AsgiApp` that it belongs to."""

    closing: bool
    event_streams: "set[AsgiRequest]"
    log: Log
    loop: asyncio.AbstractEventLoop

    def end(self, request: "AsgiRequest") -> None: ...


class AsgiRequest:
    """One request, or one websocket from its handshake to its end. Used by the loop's thread only.

    Args:
        slot: shows it; `slot.begin` has been called with `started`.
        method: `WS` for websockets.
        send: uvicorn's.

    Attributes:
        status: 0 before the answer begins.
        sent: bytes of the body.
        headers: of the answer.
        answered: the last part of the answer was sent, or will not be.
        overdue: it is being ended.
        is_silent: its time does not count while its client is there: the answer is an event stream.
        waits_to_begin: an answer before it on its connection waits for the client, so that this one may too.
    """

    # Defaults stand here and not in __init__: what a request does not change costs it nothing.
    status = 0
    sent = 0
    headers: Iterable[tuple[bytes, bytes]] = ()
    answered = False
    overdue = False
    waits_to_begin = False
    _streams = False
    # In how many of its tasks it waits for its client now.
    _waits = 0
    is_silent = False

    def __init__(
        self, owner: RequestOwner, slot: RequestSlot, method: str, started: int, scope: Scope, send: Send
    ) -> None:
        self._owner = owner
        self._send = send
        self.slot = slot
        self.method = method
        self.started = started
        self.scope = scope

    # -- what the app calls ------------------------------------------------------------------------------

    def receiving(self, receive: Receive) -> Receive:
        """ASGI's `receive` of a request whose body is still coming: waiting for it is the client's time."""
        protocol: Any = getattr(self._send, "__self__", None)

        async def received() -> Message:
            if self.answered or not protocol.more_body:
                return await receive()  # what it waits for now is the client's end
            return await self._waiting_for_client(receive())

        return received

    async def _waiting_for_client(self, step: Awaitable[_Result]) -> _Result:
        """Await what is done when the client sends or reads; it counts as progress, and not as time."""
        slot = self.slot
        slot.pause()
        self._waits += 1
        try:
            return await step
        finally:
            self._waits -= 1
            # If it was answered, the slot may be another request's.
            if not (self.answered or self._waits or self.is_silent):
                slot.progressed(monotonic_ns())

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI's `send` of a request. No coroutine of its own where nothing is to be done afterwards."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            self.headers = message.get("headers", ())
            if self._owner.closing:
                # uvicorn ends the connection behind an answer that says so.
                message = {**message, "headers": [*self.headers, CLOSE]}
            if self.status in BODILESS or self.scope["http_version"] == "1.0":
                message, self._send = framed(message, self._send, self.method)
            if self.waits_to_begin and not self.answered:
                return self._waiting_for_client(self._send(message))
        elif kind == "http.response.body":
            if message.get("more_body"):
                return self._send_part(message)
            if self._streams:
                return self._send_last(message)
            # All in one: it never waits for the client, and what comes now is uvicorn's.
            if not self.answered:
                self.sent = len(message.get("body", b""))
                self._owner.end(self)
        return self._send(message)

    async def _send_part(self, message: Message) -> None:
        if not self._streams:
            self._streams = True
            if not self.answered and self._is_event_stream():
                self._mark_endless()
        if self.answered:
            await self._send(message)
            return
        await self._waiting_for_client(self._send(message))
        if not self.answered:
            self.sent += len(message.get("body", b""))

    async def _send_last(self, message: Message) -> None:
        if self.answered:
            await self._send(message)
            return
        await self._waiting_for_client(self._send(message))
        if not self.answered:
            self.sent += len(message.get("body", b""))
            if self.client_is_gone:
                self.status = 499
            self._owner.end(self)

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

    def _mark_endless(self) -> None:
        """Note that nothing may be sent for hours, also where `unusual_requests` looks for that."""
        self.is_silent = True
        self._owner.event_streams.add(self)
        if (cycle := getattr(self._send, "__self__", None)) is not None:
            cycle.endless = True

    def look_for_client(self) -> None:
        """Of an event stream: let its time count again if its client has gone; the app may not notice it."""
        if self.client_is_gone:
            self.is_silent = False
            self._owner.event_streams.discard(self)
            self.slot.progressed(monotonic_ns())

    # -- deadlines ---------------------------------------------------------------------------------------

    def _is_event_stream(self) -> bool:
        return any(
            name.lower() == b"content-type" and value.lower().startswith(_EVENT_STREAM)
            for name, value in self.headers
        )

    def interrupt(self, task: "asyncio.Task[Any] | None") -> None:
        """End it where it waits; called in the loop. `task`: the one that serves it."""
        if self.answered or (self.overdue and self.status):
            return
        if not self.overdue:
            self.log_overdue("", task)
        if task is not None:
            task.cancel(str(DeadlineExceeded()))

    def log_overdue(self, stack: str, task: "asyncio.Task[Any] | None") -> None:
        """Log, once, where the request stands. `stack`: of the code that computes; empty: it waits."""
        if not self.overdue:
            self.overdue = True
            age = (monotonic_ns() - self.started) / 1e9
            tasks = tasks_of(self._owner.loop, {self.started: task})[self.started]
            stacks = [stack, *(stack_of(each) for each in reversed(tasks) if not stack or each is not task)]
            text = "\n\n".join(filter(None, stacks))
            self._owner.log.error("request_interrupted", **self.name(), age=age, stack=text)

    async def give_up(self) -> None:
        """Answer that it took too long; the answer must not have begun."""
        if (task := asyncio.current_task()) is not None:
            while task.uncancel():
                pass  # the app has ended; the answer must not be cancelled as well
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(_LATE)).encode()),
            CLOSE,
        ]
        await self.send({"type": "http.response.start", "status": 504, "headers": headers})
        await self.send({"type": "http.response.body", "body": _LATE})

    # -- for the log -------------------------------------------------------------------------------------

    @property
    def has_no_body(self) -> bool:
        """Whether its answer has begun, and is complete with its head (RFC 9110 section 6.4.1)."""
        return self.status in (204, 304) or (self.status > 0 and self.method == "HEAD")

    @property
    def client_is_gone(self) -> bool:
        """uvicorn's `send` is a method of the object that knows it."""
        return bool(getattr(getattr(self._send, "__self__", None), "disconnected", False))

    @property
    def refused(self) -> int:
        """The status by which the server has refused it, because its body is invalid; 0: it has not."""
        return getattr(getattr(self._send, "__self__", None), "refused", 0)

    def name(self) -> dict[str, str]:
        """Its method and path, as fields for the log."""
        return {"method": self.method, "path": self.scope["path"]}
