"""The engine of the worker classes `gevent` and `eventlet`.

The reactor with all connections in it is one descriptor for the library's hub. When it is readable a callback
in the hub does what the leader of threads does (`thread_engine`): it accepts, receives and parses. So an idle
connection costs no greenlet. A request that was received whole (with stream_request: when its head has) goes
to a greenlet, which is switched to at once and runs the app. When the app waits, in the library's way, the
callback goes on with the next event.

A connection whose request is in a greenlet is not watched, so the callback leaves it alone.
"""

import socket
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import monotonic_ns
from types import FrameType
from typing import ClassVar, Self

import msgspec

from ostler import native
from ostler.osapi.wake import Wake
from ostler.scoreboard.layout import LEAST_QUEUED
from ostler.settings.classes import Core
from ostler.workers import readiness, stacks
from ostler.workers.acceptor import FULL_CHECK_SECONDS
from ostler.workers.base import BaseWorker, Context
from ostler.workers.connection import Connection
from ostler.workers.greenlets import patching
from ostler.workers.greenlets.hubs import Callback, Hub
from ostler.workers.greenlets.serving import ForkedProcess, ServingGreenlets
from ostler.workers.greenlets.soft_interrupt import GreenletSoftInterrupts
from ostler.workers.parts import Parts
from ostler.workers.reactor import BATCH, Reactor
from ostler.workers.sweeper import SWEEP_DRAINING
from ostler.workers.system_calls import Events, SystemCalls
from ostler.workers.thread_engine import MANY_EVENTS
from ostler.workers.units import SECOND
from ostler.wsgi import forked
from ostler.wsgi.forked import leave_answered
from ostler.wsgi.interruption import QuitWorker

# How often (s) it passes if nothing happens: a hub that is silent for longer is blocked.
_TICK = 0.5
# Connections accepted from one source in one pass.
_ARRIVALS = 4


class GreenletEngine(BaseWorker):
    """Serves one app on inherited listeners, each request in a greenlet.

    What begins with an underscore is called only in the hub's greenlet, unless it says otherwise.

    Attributes:
        soft_interrupts: ends requests that take too long, when the supervisor says so.
        parts: what the engine is made of.
    """

    one_loop: ClassVar[bool] = True
    core: ClassVar[Core] = native.CORE
    calls_request_hooks: ClassVar[bool] = True
    serves_tls: ClassVar[bool] = True

    def __init__(self, hub: Hub, context: Context) -> None:
        self._hub = hub
        self._accounting = context.accounting
        self._accounting.own_idents = True
        self._slot = context.accounting.thread_slot(0)
        self._access = context.access
        self._stacks_fd = context.stacks_fd
        self.soft_interrupts = GreenletSoftInterrupts(context.accounting)
        self._greenlets = ServingGreenlets(hub, context.accounting, lambda: self.parts)
        calls = SystemCalls(wait_for=self._greenlets.wait_for, wait_in_app=hub.wait)
        self._reactor = Reactor(Wake(), calls)
        # Requests of one thread may be in the app at the same time.
        self.parts = Parts.of(
            context,
            self._reactor,
            calls,
            self.soft_interrupts,
            self._flush_access,
            multithreaded=True,
            turn=0,
        )
        self._ticking = _TICK
        self._stop_ticking: Callback = _nothing
        self._stop_watching: Callback = _nothing
        # When the reactor was last found empty, or all that was found had been taken.
        self._looked = 0
        self._prompt_until = 0
        # When to look for requests that have waited too long; none waits for a greenlet.
        self._late_due = 0
        self._no_ready: deque[Connection] = deque()
        self._in_pass = self._flush_due = False
        self._defect: Exception | None = None
        self._done = False

    # -- what the worker's life cycle calls ----------------------------------------------------------------

    @classmethod
    def create(cls, context: Context) -> Self:
        # All in one thread, whatever a file that was made for gthread says.
        settings = msgspec.structs.replace(context.settings, threads=1)
        return cls(cls._make_hub(), replace(context, settings=settings))

    @classmethod
    @abstractmethod
    def _make_hub(cls) -> Hub:
        """The hub of this thread, ready to be used in this process."""

    @staticmethod
    @abstractmethod
    def patch() -> None:
        """Replace what waits in the standard library."""

    @classmethod
    def prepare_process(cls) -> list[str]:
        return patching.problems_of(cls.patch)

    @property
    def draining(self) -> bool:  # type: ignore[override]
        return self.parts.drain.asked

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._reactor.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self._reactor.remove_reader(fd)

    def run(self) -> None:
        stacks.write_too(self.soft_interrupts.stacks, self._stacks_fd)
        self._stop_watching = self._hub.watch(self._reactor.fileno(), self._pass)
        self._stop_ticking = self._hub.every(_TICK, self._pass)
        # The first pass begins to accept; without it that would have to wait for the first tick.
        self._hub.soon(self._pass)
        try:
            self._hub.run()
        finally:
            self._stop_watching()
            self._stop_ticking()
            if self._access is not None:
                self._access.flush()
        if self._defect is not None:
            raise self._defect

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        try:
            self.soft_interrupts.interrupt(signum, frame)
        finally:
            self._reactor.wake()

    def extend_deadline(self, seconds: float) -> None:
        self.soft_interrupts.extend(seconds)

    def drain(self, hand_over: bool = False, seconds: float | None = None) -> None:
        """See BaseWorker; it only sets a flag that the next pass reads, so any thread may call it."""
        self.parts.drain.ask(hand_over, seconds)
        self._reactor.wake()

    def empty_queue(self, listeners: list[socket.socket]) -> None:
        self.parts.drain.empties = frozenset(listener.fileno() for listener in listeners)

    def abandon(self) -> None:
        """See BaseWorker; may be called from a signal handler of the main thread."""
        self.parts.drain.abandoned = True
        self.drain()
        self.parts.acceptor.close_listeners()  # now: an app that computes may keep the hub from it

    def stop(self) -> None:
        """See BaseWorker; any thread and any signal handler may call it."""
        self._done = True
        self._reactor.wake()

    def descriptors(self) -> set[int]:
        return self._reactor.descriptors() | set(self.parts.table.open) | self._hub.descriptors()

    def forked_by_app(self) -> None:
        # No check is needed then for each request of a worker.
        Connection.send = Connection.send_file = leave_answered  # type: ignore[method-assign]

    def private_descriptors(self) -> list[int]:
        return [*self.parts.table.open, *readiness.own_descriptors()]

    def close(self) -> None:
        self._greenlets.close()
        self._hub.close()
        self.parts.table.close_all(self._slot)
        self._reactor.close()

    # -- the callback in the hub ---------------------------------------------------------------------------

    def _pass(self) -> None:
        """Do all there is to do; called by the hub, and by nothing else."""
        self._in_pass = True
        try:
            if forked.is_forked():
                raise ForkedProcess
            self._serve_events()
        except ForkedProcess:
            self._stop_watching()
            self._stop_ticking()
        except QuitWorker:
            pass  # by a signal's handler, which has called `stop`
        except Exception as error:  # noqa: BLE001 - a defect of ours: `run` raises it
            self._defect = error
            self._done = True
        finally:
            self._in_pass = False
        if self._done:
            self._hub.leave()

    def _serve_events(self) -> None:
        parts, slot = self.parts, self._slot
        acceptor, siblings, sweeper = parts.acceptor, parts.siblings, parts.sweeper
        events = self._reactor.poll(0)
        now = self._reactor.now
        self._accounting.heartbeat(now)
        # What is there came after the last look, unless that left something.
        self._prompt_until = self._looked + LEAST_QUEUED
        if len(events) < BATCH:
            self._looked = now
        if now >= parts.date.due:
            parts.limited.report()
            parts.date.update(now)
        if now >= sweeper.due or sweeper.remaining or parts.drain.asked:
            self._sweep(now)
        if not acceptor.accepting:
            acceptor.try_start(slot, now)
        if self.soft_interrupts.late:
            self.soft_interrupts.end_late()
        if len(events) >= MANY_EVENTS and now >= siblings.share_due and siblings and acceptor.accepting:
            self._share(events)
        connections = parts.table.open
        arrivals = []
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                if fd in acceptor.sources:
                    arrivals.append(fd)
                else:
                    self._reactor.call_back(fd)
            elif connection.watched:
                if parts.receiver.receive(connection, slot, now):
                    self._greenlets.serve(connection, self._prompt_until)
            elif not self._greenlets.resume(fd):
                # More of a client whose request is in the app: that is received afterwards.
                self._reactor.unwatch(connection)
        if acceptor.accepting and (len(events) >= BATCH or not (events or sweeper.remaining)):
            # A busy worker's listeners wait for their turn behind all that is ready. An idle one looks for
            # connections that the kernel announced to a sibling which is busy now.
            arrivals = list(acceptor.sources)
        for fd in arrivals:
            self._accept(fd, now)
        if not acceptor.accepting:
            acceptor.try_start(slot, monotonic_ns())  # of those that were served, some have ended
        self._answer_late()
        self._tick_every(_TICK if acceptor.accepting else FULL_CHECK_SECONDS)
        if self._access is not None:
            self._access.flush()

    def _answer_late(self) -> None:
        """While the worker is full, answer what waits outside for too long."""
        late, acceptor = self.parts.late, self.parts.acceptor
        if late is None:
            return
        if acceptor.accepting:
            late.begin()
        elif acceptor.waits_for_room and self._reactor.now >= self._late_due:
            self._late_due = self._reactor.now + int(late.pause * SECOND)
            late.answer(self._no_ready, self._slot, self._serve_late)

    def _serve_late(self, connection: Connection) -> None:
        self._greenlets.serve(connection, 0)

    def _share(self, events: Events) -> None:
        """Hand the connection of the last event off, if a sibling may be less busy."""
        parts = self.parts
        if parts.siblings.share(parts.table.open.get(events[-1][0]), self._slot, self._reactor.now):
            events.pop()

    def _accept(self, source: int, now: int) -> None:
        """Accept some of the connections that wait at a source; the others are for siblings, too."""
        parts = self.parts
        for _ in range(parts.acceptor.arrivals_in_a_pass(_ARRIVALS, now)):
            newcomer = parts.acceptor.accept(source, self._slot, now)
            if newcomer is None:
                return
            if parts.receiver.receive(newcomer, self._slot, now):
                self._greenlets.serve(newcomer, self._prompt_until)

    def _sweep(self, now: int) -> None:
        parts = self.parts
        if now >= parts.sweeper.due:
            self._greenlets.end_unused()
            self._greenlets.end_waits(now)
        parts.sweeper.sweep(now, self._slot)
        if parts.sweeper.remaining:
            self._hub.soon(self._pass)
        if parts.drain.asked:
            self._tick_every(SWEEP_DRAINING)
            if not (parts.table.open or parts.acceptor.may_accept) or parts.drain.is_over(now):
                self._done = True

    def _tick_every(self, seconds: float) -> None:
        """Pass so often if nothing happens; more often while draining, whatever else is asked for."""
        seconds = min(seconds, SWEEP_DRAINING) if self.parts.drain.asked else seconds
        if seconds != self._ticking:
            self._ticking = seconds
            self._stop_ticking()
            self._stop_ticking = self._hub.every(seconds, self._pass)

    def _flush_access(self) -> None:
        """Write lines when the pass is over, or soon; called in any greenlet that serves."""
        if not (self._in_pass or self._flush_due):
            self._flush_due = True
            self._hub.soon(self._flush_lines)

    def _flush_lines(self) -> None:
        self._flush_due = False
        if self._access is not None:
            self._access.flush()


def _nothing() -> None:
    """Before there is something to end."""
