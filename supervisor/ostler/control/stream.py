"""`GET /v1/stream`: the fleet as server-sent events (WHATWG HTML, section 9.2).

One task a stream; it alone writes. Nothing is queued for a reader beyond the transport's own buffer and the
bounded subscription: a write that makes no progress for some seconds ends the stream, and the
dashboard opens another and gets the whole picture again.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from ostler.control.backend import Backend, Subscription
from ostler.control.handlers import Caller
from ostler.control.limits import Quota
from ostler.control.problems import TooManyStreams
from ostler.control.routes import SSE
from ostler.control.views import EventView, ExitView
from ostler.text import json_of

if TYPE_CHECKING:
    from ostler.logs.limiter import LimitedLog

TICK = 1.0
EVENT_DELAY = 0.1
"""Seconds: after an event the numbers follow so soon, but not more often than this."""
KEEP_ALIVE_TICKS = 15
WRITE_SECONDS = 5.0
MAX_STREAMS = 32
STREAMS_PER_PEER = 8
"""Of one stranger on the Unix socket, or of one session. A browser has six connections to a host."""
RESERVED_STREAMS = 8
"""For the daemon's own user, root, and the bearer token."""
SHARED_SECONDS = 0.05
"""Seconds for which the same numbers go to all streams; less than EVENT_DELAY: none precede an event."""
EVENTS_AT_START = 200
EXITS_AT_START = 50


def frame(name: str, data: object, number: int | None = None) -> bytes:
    """One event of the stream. JSON has no raw line ends, so one `data:` line holds it."""
    head = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), json_of(data))


class Numbers:
    """The fleet's status and workers as frames, made once for all streams that send them at a time."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._at = float("-inf")
        self._frames: tuple[bytes, bytes] = b"", b""

    def make(self) -> tuple[bytes, bytes]:
        """As they are now."""
        self._frames = frame("status", self._backend.status()), frame("workers", self._backend.workers())
        self._at = asyncio.get_running_loop().time()
        return self._frames

    def recent(self) -> tuple[bytes, bytes]:
        """As they are, or were SHARED_SECONDS ago at most."""
        if asyncio.get_running_loop().time() - self._at < SHARED_SECONDS:
            return self._frames
        return self.make()


class Streams:
    """All open streams of all listeners."""

    def __init__(
        self,
        backend: Backend,
        log: "LimitedLog",
        *,
        limit: int = MAX_STREAMS,
        tick: float = TICK,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._backend = backend
        self._log = log
        self._quota = Quota("streams", limit, STREAMS_PER_PEER, limit * RESERVED_STREAMS // MAX_STREAMS)
        self._numbers = Numbers(backend)
        self._tick = tick
        self._write_seconds = write_seconds
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams soon."""
        self._closing.set()

    async def serve(
        self, request: web.Request, caller: Caller, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer until the reader leaves, lags, loses its session, or the server closes.

        Raises:
            TooManyStreams: before anything was sent.
        """
        key, trusted = caller.peer, caller.scope == "admin"
        if (refusal := self._quota.refusal(key, trusted)) is not None:
            raise TooManyStreams(f"{refusal}; close a dashboard")
        response = web.StreamResponse(headers={**headers, "Content-Type": SSE, "X-Accel-Buffering": "no"})
        with self._quota.one(key, trusted):
            # Before the snapshot is taken, so that nothing falls between the two.
            subscription = self._backend.subscribe()
            try:
                await response.prepare(request)
                stream = _Stream(
                    self._backend,
                    self._numbers,
                    subscription,
                    response,
                    caller,
                    self._tick,
                    self._write_seconds,
                )
                await stream.run(self._closing)
            except TimeoutError:
                self._log.write(
                    "warning", "control_stream_dropped", caller.who, who=caller.who, cause="slow reader"
                )
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:
                pass  # the reader has left, as readers do
            finally:
                subscription.close()
        response.force_close()
        return response


class _Stream:
    """One reader."""

    def __init__(
        self,
        backend: Backend,
        numbers: Numbers,
        subscription: Subscription,
        response: web.StreamResponse,
        caller: Caller,
        tick: float,
        write_seconds: float,
    ) -> None:
        self._backend = backend
        self._fleet = numbers
        self._subscription = subscription
        self._response = response
        self._caller = caller
        self._tick = tick
        self._write_seconds = write_seconds
        self._last_event = 0
        self._last_exit = 0
        self._last_sample = 0.0

    async def run(self, closing: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        await self._write(self._snapshot())
        next_tick = clock() + self._tick
        numbers_at: float | None = None
        ticks = 0
        closed = asyncio.ensure_future(closing.wait())
        event = asyncio.ensure_future(self._subscription.next_event())
        try:
            while self._caller.valid():
                wake = next_tick if numbers_at is None else min(next_tick, numbers_at)
                await asyncio.wait(
                    {closed, event}, timeout=max(0.0, wake - clock()), return_when=asyncio.FIRST_COMPLETED
                )
                if closed.done():
                    return
                if event.done():
                    await self._write(self._event(event.result()))
                    event = asyncio.ensure_future(self._subscription.next_event())
                    if numbers_at is None:
                        numbers_at = clock() + EVENT_DELAY
                now = clock()
                if now >= next_tick:
                    ticks += 1
                    comment = [b": keep-alive\n\n"] if ticks % KEEP_ALIVE_TICKS == 0 else []
                    await self._write([*comment, *self._numbers(), *self._new_samples()])
                    # A process that was stopped for a while does not catch up on the ticks it slept through.
                    next_tick = max(next_tick + self._tick, now)
                    numbers_at = None
                elif numbers_at is not None and now >= numbers_at:
                    await self._write(self._numbers())
                    numbers_at = None
        finally:
            for waiting in (closed, event):
                waiting.cancel()
            await asyncio.gather(closed, event, return_exceptions=True)

    def _snapshot(self) -> Iterable[bytes]:
        samples = list(self._backend.samples())
        events = list(self._backend.recent_events())[-EVENTS_AT_START:]
        self._last_sample = samples[-1].at if samples else 0.0
        self._last_event = events[-1].id if events else 0
        first = [frame("history", samples), frame("events", events), frame("exits", self._new_exits())]
        # Not older than the events before them.
        return [b"retry: 1000\n", *first, *self._fleet.make()]

    def _numbers(self) -> Iterable[bytes]:
        return [*(frame("exit", view) for view in reversed(self._new_exits())), *self._fleet.recent()]

    def _new_exits(self) -> list[ExitView]:
        """Those that were not told yet, newest first."""
        fresh = [view for view in self._backend.exits(EXITS_AT_START) if view.id > self._last_exit]
        self._last_exit = fresh[0].id if fresh else self._last_exit
        return fresh

    def _new_samples(self) -> Iterable[bytes]:
        samples = self._backend.samples()
        if not samples or samples[-1].at <= self._last_sample:
            return []
        self._last_sample = samples[-1].at
        return [frame("sample", samples[-1])]

    def _event(self, event: EventView) -> Iterable[bytes]:
        if event.id <= self._last_event:
            return []  # it was in the snapshot already
        self._last_event = event.id
        return [frame("event", event, event.id)]

    async def _write(self, frames: Iterable[bytes]) -> None:
        """Raises TimeoutError if the reader's buffers stay full, ConnectionError if it is gone."""
        if chunk := b"".join(frames):
            await asyncio.wait_for(self._response.write(chunk), self._write_seconds)
