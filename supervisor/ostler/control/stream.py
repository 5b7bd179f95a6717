"""`GET /v1/stream`: the fleet as server-sent events (WHATWG HTML, section 9.2).

Each stream has one task, and only that task writes to it. All streams send the same snapshot of the fleet's
numbers: it is made once per tick (a second), and soon after events. Without open streams none is made.

Nothing is queued for a client beyond the buffer of its transport and its bounded subscription. A write
without progress for some seconds ends the stream; the dashboard opens another one and gets the complete state
again.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from ostler.control.handlers import Backend, Caller, Subscription
from ostler.control.limits import Quota
from ostler.control.problems import TooManyStreams
from ostler.control.routes import SSE
from ostler.control.views import EventView, ExitView
from ostler.text import json_of

if TYPE_CHECKING:
    from ostler.logs.limiter import LimitedLog

TICK = 1.0
EVENT_DELAY = 0.1
"""Seconds from an event to the numbers that follow it; several events within them share these numbers."""
KEEP_ALIVE_TICKS = 15
WRITE_SECONDS = 5.0
MAX_STREAMS = 32
STREAMS_PER_PEER = 8
"""For each other user on the Unix socket and each session. A browser opens six connections to a host."""
RESERVED_STREAMS = 8
"""For the daemon's own user, root, and the bearer token."""
EVENTS_AT_START = 200
EXITS_AT_START = 50


def frame(name: str, data: object, number: int | None = None) -> bytes:
    """One event of the stream. JSON has no raw line ends, so one `data:` line holds it."""
    head = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), json_of(data))


class Snapshots:
    """The fleet's status and workers as frames of the stream, made once for all streams.

    Ticks come at the same moments for all streams, counted from the start of the first one.

    Args:
        tick: seconds between two ticks.
        clock: the event loop's, seconds.
    """

    def __init__(self, backend: Backend, tick: float, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._tick = tick
        self._clock = clock
        self._first_tick = 0.0
        self._made_at = float("-inf")
        self._last_event = 0
        self._frames: tuple[bytes, bytes] = b"", b""

    def begin(self) -> None:
        """The first stream begins; the ticks count from now on."""
        self._first_tick = self._clock()

    def next_tick(self) -> float:
        """The moment of the next tick."""
        ticks = (self._clock() - self._first_tick) // self._tick + 1
        return self._first_tick + ticks * self._tick

    def since(self, moment: float) -> tuple[bytes, bytes]:
        """The snapshot if it was made at `moment` or later, else a new one."""
        return self._frames if self._made_at >= moment else self._make()

    def at_start(self, last_event: int) -> tuple[bytes, bytes]:
        """For a new stream: a snapshot not older than a tick, and not older than the event `last_event`."""
        if last_event != self._last_event:
            return self._make()
        return self.since(self._clock() - self._tick)

    def _make(self) -> tuple[bytes, bytes]:
        events = self._backend.recent_events()
        self._last_event = events[-1].id if events else 0
        self._frames = frame("status", self._backend.status()), frame("workers", self._backend.workers())
        self._made_at = self._clock()
        return self._frames


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
        self._tick = tick
        self._snapshots = Snapshots(backend, tick, lambda: asyncio.get_running_loop().time())
        self._open = 0
        self._write_seconds = write_seconds
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Have all streams end; returns at once."""
        self._closing.set()

    async def serve(
        self, request: web.Request, caller: Caller, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer until the client leaves, is too slow, loses its session, or the server closes.

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
            if not self._open:
                self._snapshots.begin()
            self._open += 1
            try:
                await response.prepare(request)
                stream = _Stream(
                    self._backend, self._snapshots, subscription, response, caller, self._write_seconds
                )
                await stream.run(self._closing)
            except TimeoutError:
                self._log.write(
                    "warning",
                    "control_stream_dropped",
                    caller.identity,
                    who=caller.identity,
                    cause="slow reader",
                )
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:
                pass  # the client has left
            finally:
                self._open -= 1
                subscription.close()
        response.force_close()
        return response


class _Stream:
    """The stream of one client."""

    def __init__(
        self,
        backend: Backend,
        snapshots: Snapshots,
        subscription: Subscription,
        response: web.StreamResponse,
        caller: Caller,
        write_seconds: float,
    ) -> None:
        self._backend = backend
        self._snapshots = snapshots
        self._subscription = subscription
        self._response = response
        self._caller = caller
        self._write_seconds = write_seconds
        self._last_event = 0
        self._last_exit = 0
        self._last_sample = 0.0

    async def run(self, closing: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        await self._write(self._complete_state())
        next_tick = self._snapshots.next_tick()
        event_at: float | None = None  # when the oldest event came that no snapshot has followed yet
        ticks = 0
        closed = asyncio.ensure_future(closing.wait())
        event = asyncio.ensure_future(self._subscription.next_event())
        try:
            while self._caller.valid():
                wake = next_tick if event_at is None else min(next_tick, event_at + EVENT_DELAY)
                await asyncio.wait(
                    {closed, event}, timeout=max(0.0, wake - clock()), return_when=asyncio.FIRST_COMPLETED
                )
                if closed.done():
                    return
                if event.done():
                    await self._write(self._event(event.result()))
                    event = asyncio.ensure_future(self._subscription.next_event())
                    if event_at is None:
                        event_at = clock()
                now = clock()
                if now >= next_tick:
                    ticks += 1
                    comment = [b": keep-alive\n\n"] if ticks % KEEP_ALIVE_TICKS == 0 else []
                    numbers = self._numbers(max(next_tick, event_at or 0.0))
                    await self._write([*comment, *numbers, *self._new_samples()])
                    # Ticks that were missed, in a process that was stopped, are not made up for.
                    next_tick = self._snapshots.next_tick()
                    event_at = None
                elif event_at is not None and now >= event_at + EVENT_DELAY:
                    await self._write(self._numbers(event_at))
                    event_at = None
        finally:
            for waiting in (closed, event):
                waiting.cancel()
            await asyncio.gather(closed, event, return_exceptions=True)

    def _complete_state(self) -> Iterable[bytes]:
        samples = list(self._backend.samples())
        events = list(self._backend.recent_events())[-EVENTS_AT_START:]
        self._last_sample = samples[-1].at if samples else 0.0
        self._last_event = events[-1].id if events else 0
        first = [frame("history", samples), frame("events", events), frame("exits", self._new_exits())]
        return [b"retry: 1000\n", *first, *self._snapshots.at_start(self._last_event)]

    def _numbers(self, since: float) -> Iterable[bytes]:
        exits = [frame("exit", view) for view in reversed(self._new_exits())]
        return [*exits, *self._snapshots.since(since)]

    def _new_exits(self) -> list[ExitView]:
        """Ends of processes that this stream has not sent yet, newest first."""
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
            return []  # sent with the complete state
        self._last_event = event.id
        return [frame("event", event, event.id)]

    async def _write(self, frames: Iterable[bytes]) -> None:
        """Raises TimeoutError if the client's buffers stay full, ConnectionError if it is gone."""
        if chunk := b"".join(frames):
            await asyncio.wait_for(self._response.write(chunk), self._write_seconds)
