"""The engine of the worker classes `gevent` and `eventlet`.

The epoll with all connections in it is one descriptor for the library's hub. When it is readable a callback
in the hub does what a thread that leads does (`engine`): it accepts, receives and parses. So an idle
connection costs no greenlet. A whole request goes to a greenlet, which is switched to at once and runs the
app. When the app waits, in the library's way, the callback goes on with the next event.

Everything happens in one thread, and greenlets switch only where they wait: in the app, and for a client that
is slow to take an answer or to send a body that is read while it comes. A connection whose request is in a
greenlet is not armed, so the callback keeps its hands off it.
"""

import faulthandler
import select
import signal
import sys
import warnings
from abc import abstractmethod
from dataclasses import replace
from time import monotonic_ns
from types import FrameType
from typing import ClassVar, NamedTuple, Self

import msgspec
from greenlet import getcurrent, greenlet

from ostler.logs.lean import Log, LogFile, resolve_format
from ostler.osapi import original
from ostler.osapi.process import DUMP_SIGNAL
from ostler.scoreboard import layout
from ostler.scoreboard.writer import CellWriter
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.connection import Connection
from ostler.workers.doors import ROOM_LOOK
from ostler.workers.greenlet_deadlines import Berths, GreenletDeadlines
from ostler.workers.hubs import Callback, Hub, Server
from ostler.workers.loop import BATCH, CROWD, IN, SWEEP_DRAINING, Loop
from ostler.wsgi import exchange
from ostler.wsgi.exchange import QuitWorker

# How often (s) it passes if nothing happens: a hub that is silent for longer is blocked.
_TICK = 0.5
# Connections accepted in one pass.
_ARRIVALS = 4
# How long (ms) a dump of stacks may wait for its reader.
_DUMP_PATIENCE = 50


class _Waiting(NamedTuple):
    """A greenlet that waits for a client until `deadline` (CLOCK_MONOTONIC, ns; 0: for ever)."""

    greenlet: greenlet
    deadline: int
    came: list[bool]


class _Forked(BaseException):
    """This is a process that the app has forked: it may use the hub, but serves nobody."""


class GreenletEngine(Loop):
    """Serves one app on inherited listeners, each request in a greenlet.

    Args: see Loop.
    """

    one_loop: ClassVar[bool] = True
    serves_tls: ClassVar[bool] = True
    _interleaves = True
    deadlines: GreenletDeadlines

    def __init__(self, hub: Hub, context: Context) -> None:
        super().__init__(context)
        self._hub = hub
        self._stacks_fd = context.stacks_fd
        self._wait_for = self._wait_for_client
        # Servers without a request; how many of them nobody has needed since the last sweep.
        self._parked: list[Server] = []
        self._spare = self._references = 0
        self._waiting: dict[int, _Waiting] = {}
        self._ticking = _TICK
        self._stop_ticking: Callback = _nothing
        self._stop_watching: Callback = _nothing
        self._quick_until = self._looked = 0
        self._in_turn = self._flush_due = False
        self._defect: Exception | None = None

    # -- what the worker's life cycle calls --------------------------------------------------------------

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
    def prepare(cls, settings: Settings) -> None:
        with warnings.catch_warnings(record=True) as caught:
            cls.patch()
        # Our own use of `ssl` is no reason to warn: it does without what is replaced.
        told = [str(warning.message) for warning in caught if not settings.certfile]
        if told:
            file = LogFile(settings.errorlog, 2)
            log = Log(file, resolve_format(settings.log_format, False), settings.loglevel, {})
            log.warning("patched_late", problem=" ".join(" ".join(told).split()))
            log.close()

    def run(self) -> None:
        self._dump_greenlets_too()
        self._stop_watching = self._hub.watch(self._epoll.fileno(), self._turn)
        self._stop_ticking = self._hub.every(_TICK, self._turn)
        # The first pass begins to accept; without it that would have to wait for the first tick.
        self._hub.soon(self._turn)
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
            self.deadlines.interrupt(signum, frame)
        finally:
            self.wake()

    def abandon(self) -> None:
        self._abandoned = True
        self.drain()
        self._let_listeners_go()  # now: an app that computes may keep the hub from it

    def descriptors(self) -> set[int]:
        return super().descriptors() | self._hub.descriptors()

    def close(self) -> None:
        # Those that wait for connections would keep the engine, and all that it has, in the hub's memory.
        while self._parked:
            server = self._parked.pop()
            server.parent = getcurrent()  # where its end leads: the hub's loop would not return
            server.switch()  # it finds no connection
        self._hub.close()
        super().close()

    def _dump_greenlets_too(self) -> None:
        """faulthandler knows threads only: behind its dump, Python's handler writes one of greenlets."""
        if self._stacks_fd < 0:
            return
        # Without a handler the signal would end the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, (DUMP_SIGNAL,))
        faulthandler.unregister(DUMP_SIGNAL)
        signal.signal(DUMP_SIGNAL, self._dump)
        faulthandler.register(DUMP_SIGNAL, self._stacks_fd, all_threads=True, chain=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (DUMP_SIGNAL,))

    def _dump(self, _signum: int, frame: FrameType | None) -> None:
        text = self.deadlines.stacks(frame).encode(errors="backslashreplace")
        poll = original.poll()
        poll.register(self._stacks_fd, select.POLLOUT)
        # There is room for a block if there is any; and a supervisor that does not read must not stop us.
        while text and poll.poll(_DUMP_PATIENCE):
            try:
                text = text[original.write(self._stacks_fd, text[: select.PIPE_BUF]) :]
            except OSError:
                return  # it is gone

    def _new_deadlines(self, cell: CellWriter) -> GreenletDeadlines:
        self._berths = Berths(cell)
        return GreenletDeadlines(cell, self._berths)

    # -- the callback in the hub -------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do all there is to do; called by the hub, and by nobody else."""
        self._in_turn = True
        try:
            if exchange.is_forked():
                raise _Forked
            self._look()
        except _Forked:
            self._stop_watching()
            self._stop_ticking()
        except QuitWorker:
            pass  # by a signal's handler, which has called `stop`
        except Exception as error:  # noqa: BLE001 - a defect of ours: `run` raises it
            self._defect = error
            self._done = True
        finally:
            self._in_turn = False
        if self._done:
            self._hub.leave()

    def _look(self) -> None:
        if not self._references:
            self._count_references()
        house = self._berths.house
        events = self._epoll.poll(0, BATCH)
        self._cell.header[layout.HEARTBEAT] = self._now = now = monotonic_ns()
        # What is there came after the last look, unless that left something.
        self._quick_until = house.quick_until = self._looked + layout.LEAST_QUEUED
        if len(events) < BATCH:
            self._looked = now
        if now >= self._next_second:
            self._tell_time(now)
        if now >= self._next_sweep or self._sweeping or self.draining:
            self._look_after(now)
        if not self._accepting:
            self._accept_on_again(house, now)
        if self.deadlines.late:
            self.deadlines.end_late()
        if len(events) >= CROWD and now >= self._next_gift and self._handoff is not None and self._accepting:
            self._events.extend(events)
            self._share(now, house)
            events = list(self._events)
            self._events.clear()
        connections = self._connections
        arrivals = []
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                if fd in self._doors:
                    arrivals.append(fd)
                else:
                    self._other_event(fd)
            elif connection.armed:
                if self._receive(connection, house, now):
                    self._serve_in_greenlet(connection)
            elif (waiting := self._waiting.get(fd)) is not None:
                waiting.came.append(True)
                waiting.greenlet.switch()
                if exchange.is_forked():
                    raise _Forked
            else:
                # More of a client whose request is in the app: that is looked at afterwards.
                self._disarm(connection)
        if self._accepting and (len(events) >= BATCH or not (events or self._sweeping)):
            # A busy worker's listeners wait for their turn behind all that is ready. An idle one looks for
            # connections that the kernel announced to a sibling which is busy now.
            arrivals = list(self._doors)
        for fd in arrivals:
            self._let_in(fd, now)
        if not self._accepting:
            self._accept_on_again(house, monotonic_ns())  # of those that were served, some have ended
        self._tick_every(_TICK if self._accepting else ROOM_LOOK)
        if self._access is not None:
            self._access.flush()

    def _let_in(self, fd: int, now: int) -> None:
        """Take some of the connections that wait at a listener; the others are for siblings, too."""
        house = self._berths.house
        for _ in range(self._arrivals_in_a_pass(_ARRIVALS, now)):
            newcomer = self._take(house) if fd == self._handoff_fd else self._accept(fd, house, now)
            if newcomer is None:
                return
            if self._receive(newcomer, house, now):
                self._serve_in_greenlet(newcomer)

    def _look_after(self, now: int) -> None:
        """What time brings."""
        if now >= self._next_sweep:
            self._berths.show_the_oldest(now)
            self._end_spare()
            for waiting in list(self._waiting.values()):
                if 0 < waiting.deadline <= now:
                    waiting.came.append(False)
                    waiting.greenlet.switch()
        self._sweep(now, self._berths.house)
        if self._sweeping:
            self._hub.soon(self._turn)
        if self.draining:
            self._tick_every(SWEEP_DRAINING)

    def _tick_every(self, seconds: float) -> None:
        """Pass so often if nothing happens; more often while draining, whatever else is asked for."""
        seconds = min(seconds, SWEEP_DRAINING) if self.draining else seconds
        if seconds != self._ticking:
            self._ticking = seconds
            self._stop_ticking()
            self._stop_ticking = self._hub.every(seconds, self._turn)

    def _flush_access(self) -> None:
        """When the pass is over; for a greenlet that the hub has switched to, soon."""
        if not (self._in_turn or self._flush_due):
            self._flush_due = True
            self._hub.soon(self._flush_lines)

    def _flush_lines(self) -> None:
        self._flush_due = False
        if self._access is not None:
            self._access.flush()

    # -- greenlets ---------------------------------------------------------------------------------------

    def _serve_in_greenlet(self, connection: Connection) -> None:
        """Serve a connection's requests; returns when that is done, or when the app waits."""
        connection.armed = False
        server = self._server()
        server.connection = connection
        server.switch()
        if exchange.is_forked():
            raise _Forked

    def _server(self) -> Server:
        """One that waits for a connection."""
        parked = self._parked
        while parked:
            server = parked.pop()
            if len(parked) < self._spare:
                self._spare = len(parked)
            if sys.getrefcount(server) <= self._references:
                return server
            server.switch()  # somebody else holds it: it finds no connection, and ends
        server = Server(self._run_server, self._hub.greenlet)
        server.switch()
        parked.pop()
        return server

    def _count_references(self) -> None:
        """Those to a server that nobody else holds, where `_server` counts them; in the hub, as all that."""
        Server(self._run_server, self._hub.greenlet).switch()
        server = self._parked.pop()
        self._references = sys.getrefcount(server)
        self._parked.append(server)

    def _run_server(self) -> None:
        """What a server does until its end."""
        server = getcurrent()
        assert isinstance(server, Server)
        hub, parked = self._hub, self._parked
        while True:
            parked.append(server)
            try:
                hub.greenlet.switch()
            except BaseException:  # noqa: BLE001 - somebody meant a request that has ended
                break
            if (connection := server.connection) is None:
                break
            self._serve_as(server, connection)
            server.connection = connection = None
            if not hub.reuses:
                return
            if server.links or server.gr_context is not None:
                server.forget()
        if server in parked:
            parked.remove(server)  # it was not we who switched to it

    def _serve_as(self, server: Server, connection: Connection) -> None:
        berths = self._berths
        berth = server.berth = berths.take()
        berth.greenlet = server
        berth.quick_until = self._quick_until
        try:
            self._serve(connection, berth)
        except QuitWorker:
            pass  # by a signal's handler, which has called `stop`
        except BaseException:  # noqa: BLE001 - see _fail; gevent's own are no Exception
            self._fail(connection, berth)
        finally:
            server.berth = berth.greenlet = None
            berths.give_back(berth)
        if connection.outbox or connection.mask != IN:
            self._watch(connection)
        else:
            connection.armed = True

    def _end_spare(self) -> None:
        """Let half of those greenlets go that nobody has needed for a while: each keeps some memory."""
        for _ in range((self._spare + 1) // 2):
            self._parked.pop(0).switch()  # it finds no connection
        self._spare = len(self._parked)

    def _wait_for_client(self, fd: int, event: int, deadline: int) -> bool:
        """As connection._wait_for, while others run."""
        connection = self._connections[fd]
        waiting = self._waiting[fd] = _Waiting(getcurrent(), deadline, [])
        try:
            self._arm(connection, event)
            while not waiting.came:
                self._hub.greenlet.switch()
        finally:
            del self._waiting[fd]
            if not connection.closed:
                self._disarm(connection)
        return waiting.came[0]

    def _arm(self, connection: Connection, event: int) -> None:
        """Have the kernel watch for an event that a greenlet waits for (poll's are epoll's)."""
        known, connection.mask = connection.mask, event
        if known:
            self._modify(connection.fd, event)
        else:
            self._epoll.register(connection.fd, event)


def _nothing() -> None:
    """Before there is something to end."""
