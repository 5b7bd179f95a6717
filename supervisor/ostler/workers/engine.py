"""The epoll engine: the worker classes `sync` and `gthread`.

One epoll holds the listeners, the connections, the supervisor's channel, the hand-off and an eventfd that
wakes it. One thread at a time leads: it waits at the epoll, receives, and runs the app itself; see `lead` for
how the lead goes to another thread when the app takes long.

Slow clients cost no app time: the app is called when a request has been received whole, and what a client
does not take of an answer is kept and sent when it does.
"""

import socket
import sys
import threading
import traceback
from time import monotonic_ns
from typing import ClassVar

from ostler.osapi import original
from ostler.osapi.gil_holding import GilHoldingCalls
from ostler.osapi.process import set_timer_slack
from ostler.scoreboard import layout
from ostler.workers.base import Context
from ostler.workers.connection import READ_SIZE, Connection
from ostler.workers.doors import ROOM_LOOK
from ostler.workers.lane import Lane
from ostler.workers.lead import Lead
from ostler.workers.loop import BATCH, CROWD, IN, SECOND, SWEEP, SWEEP_DRAINING, Loop
from ostler.wsgi.exchange import DeadlineExceeded

# A pass of the loop that takes no longer than this (ns) makes nobody wait who came during it...
_BRIEF = 250_000
# ... unless the next one takes longer than this until it is their turn.
_QUICK_PASS = layout.LEAST_QUEUED - _BRIEF
_LONG_AGO = 1_000_000 * SECOND
# If requests take longer than this on average the lead is passed on before the app is run.
_HURRY = 300_000

# A thread that computes lets others have the interpreter lock after this time (s). Python's own 5 ms are long
# for who serves quick requests beside one that computes; an app that has chosen knows better.
_USUAL_SWITCH_INTERVAL = 0.005
_SWITCH_INTERVAL = 0.001
# A client may send thousands of requests at once, and others must not wait until all are answered (ns).
_TURN = 20_000_000
# How much later than asked for the kernel may end a wait (ns), instead of 50 µs: threads that wait a
# millisecond for a database should not lose a twentieth of their time.
_TIMER_SLACK = 1_000


class Engine(Loop):
    """Serves one app on inherited listeners, with `settings.threads` threads."""

    serves_tls: ClassVar[bool] = True
    _turn_lasts = _TURN

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._lead = Lead(self._threads, self._let_go, self._mind, self.wake)
        if self._threads > 1:
            self._held = GilHoldingCalls(READ_SIZE)
            self._read = self._read_in_a_crowd
            self._modify = self._modify_in_a_crowd
            self._send_now = self._send_in_a_crowd
        self._others: list[threading.Thread | original.NativeThread] = []
        self._gate, self._entered = original.Lock(), original.Lock()
        self._in_hand: Connection | None = None
        # The lead was lent from within a request, by `attend`.
        self._attended = False
        # What is new goes before requests that wait already.
        self._new_first = False
        self._lane: Lane | None = None  # the first thread's
        # When all that was found in the last pass had been served.
        self._worked_until = 0

    # -- what the worker's life cycle calls --------------------------------------------------------------

    def attend(self) -> None:
        """A message came, maybe while the only thread is in the app: let a watcher read it and mind the rest.

        Must be called from a signal handler of the main thread, and does nothing unless there is a need.
        """
        lane = self._lane
        if lane is None or not lane.words[layout.STARTED] or self._lead.watched or self._handoff is None:
            return
        if self._attended:
            return  # the next message came while this function does its work
        self._attended = True
        if self._start_watcher():
            self._lead.lend(lane)
        else:
            self._attended = False

    def abandon(self) -> None:
        """Drain, and let go of the listeners at once: another daemon may want the addresses.

        May be called from a signal handler of the main thread.
        """
        self._abandoned = True
        self.drain()
        if self._threads == 1 and not self._lead.watched:
            self._let_listeners_go()  # nobody else would while this thread is in the app

    def start_threads(self) -> None:
        if self._threads == 1:
            return
        self._gate.acquire()
        self._entered.acquire()
        self._lead.watch()
        set_timer_slack(_TIMER_SLACK)
        if sys.getswitchinterval() == _USUAL_SWITCH_INTERVAL:
            sys.setswitchinterval(_SWITCH_INTERVAL)
        for number in range(1, self._threads):
            thread = original.thread(self._run_behind_gate, f"ostler-{number + 1}", (number,))
            thread.start()
            self._others.append(thread)

    def _run_behind_gate(self, number: int) -> None:
        with self._gate:
            pass
        if number == 1:
            self._entered.release()
        self._run(number)

    def run(self) -> None:
        """Serve until drained. The calling thread is one of the engine's."""
        if self._others:
            self._gate.release()
            # The main thread comes last: while it is in the app, messages of the supervisor are read later.
            self._entered.acquire()
        try:
            self._run(0)
        finally:
            self._lead.stop()
            if self._access is not None:
                self._access.flush()
        for thread in self._others:
            thread.join(max(0, (self._drain_deadline or 0) - monotonic_ns()) / SECOND)

    def run_once(self) -> None:
        """Serve what is there now, without waiting."""
        lane = Lane(self._cell, 0)
        self._wait(lane, 0.0)
        self._serve_events(lane)

    # -- the loop ----------------------------------------------------------------------------------------

    def _run(self, thread: int) -> None:
        lane = Lane(self._cell, thread)
        if thread == 0:
            self._lane = lane
        while not self._done:
            self._lead.take(self._average > _HURRY)
            self._now = monotonic_ns()
            # What another thread has left, and what came meanwhile, waits for longer than this one knows.
            self._worked_until = self._now + _LONG_AGO
            lane.quick_until = 0
            leads = True
            try:
                leads = self._lead_on(lane)
            except Exception:
                # A defect of ours; the main thread's ends the worker, and so must another's.
                self.stop()
                if thread == 0:
                    raise
                self._log.error("internal_error", traceback=traceback.format_exc())
                self._lead.give_up()
                return
            if leads:
                self._lead.give()

    def _lead_on(self, lane: Lane) -> bool:
        """Lead until the end; False if the lead is somebody else's before."""
        while not self._done:
            if not self._events or self._new_first:
                self._wait(lane, 0.0 if self._events else self._patience())
            if not self._serve_events(lane):
                return False
        return True

    def _patience(self) -> float:
        if self._done or self._ready or self._sweeping:
            return 0.0
        if self.draining:
            return SWEEP_DRAINING
        return ROOM_LOOK if self._is_full and not self._accepting else SWEEP

    def _wait(self, lane: Lane, patience: float) -> None:
        """Wait for events, as the leader, and put them into the queue."""
        if self._now >= self._next_sweep or self._sweeping or self.draining:
            # As of the last look at the sockets: what came while the app was busy is not late.
            self._sweep(self._now, lane)
        if not self._accepting:
            self._accept_on_again(lane, monotonic_ns())
        if self._access is not None:
            self._access.flush()
        unseen = self._worked_until - self._now
        events = self._poll(0.0 if self._done else patience)
        self._cell.header[layout.HEARTBEAT] = self._now = now = monotonic_ns()
        # A request has waited at most for as long as nobody looked, plus the time that those before it take.
        lane.quick_until = now + (_QUICK_PASS if unseen < _BRIEF else layout.LEAST_QUEUED - unseen)
        if now >= self._next_second:
            self._tell_time(now)
        if events:
            self._events.extend(events)
        elif self._accepting and not self._sweeping:
            # An idle worker looks for connections that the kernel announced to a sibling which is busy now.
            self._events.extend((fd, IN) for fd in self._doors)

    def _poll(self, patience: float) -> list[tuple[int, int]]:
        if self._threads > 1 and self._lead.crowded and (events := self._held.poll(self._epoll.fileno())):
            return events
        return self._epoll.poll(patience, BATCH)

    def _serve_events(self, lane: Lane) -> bool:
        """Serve what came, as the leader; False if the lead is somebody else's afterwards."""
        # In turns with what is new: while it serves one of them the lead may pass to another thread.
        ready = 0 if self._events and self._new_first else len(self._ready)
        self._new_first = bool(ready)
        for _ in range(ready):
            connection = self._ready.popleft()
            lane.quick_until = connection.idle_since + layout.LEAST_QUEUED
            if not self._serve_next(connection, lane):
                return False
        events = self._events
        connections = self._connections
        now = self._now
        crowd = len(events) >= CROWD
        if crowd and now >= self._next_gift and self._handoff is not None and self._accepting:
            self._share(now, lane)
        arrivals: list[int] = []
        while events:
            fd, _ = events.popleft()
            known = connections.get(fd)
            if known is None:
                if fd in self._doors:
                    arrivals.append(fd)
                else:
                    self._other_event(fd)
            elif known.armed and self._receive(known, lane, now):
                if not self._serve_next(known, lane):
                    events.extend((fd, IN) for fd in arrivals)
                    return False
                now = known.idle_since  # when its answer was given
        if arrivals:
            # They wait for whoever is free: that we were says nothing of them.
            lane.quick_until = 0
        # Last: a connection that came while the app was busy has gone to a sibling that was not.
        for fd in arrivals:
            for _ in range(self._arrivals_in_a_pass(1, now)):
                newcomer = self._take(lane) if fd == self._handoff_fd else self._accept(fd, lane, now)
                if newcomer is None:
                    break
                if self._receive(newcomer, lane, now):
                    if not self._serve_next(newcomer, lane):
                        return False
                    now = newcomer.idle_since
        # Requests say when they ended. Of other events only many matter.
        self._worked_until = monotonic_ns() if crowd else now
        return True

    def _serve_next(self, connection: Connection, lane: Lane) -> bool:
        """Serve a connection's requests, as the leader; whether the caller still leads afterwards."""
        lead = self._lead
        if not lead.watched:
            self._in_hand = connection
            try:
                self._serve(connection, lane)
            except (Exception, DeadlineExceeded):  # noqa: BLE001 - see _fail
                self._fail(connection, lane)
            if self._attended:
                still_leading = lead.come_back(lane)
                self._put_back(connection, still_leading)
                return still_leading
            if connection.outbox or connection.mask != IN or connection.parser.requests:
                self._put_back(connection, True)
            if self._had_long and self._handoff is not None:
                self._start_watcher()
            return True
        if self._average > _HURRY and lead.wanted:
            self._disarm(connection)
            lead.give()
            self._serve_safely(connection, lane)
            self._put_back(connection, False)
            return False
        self._in_hand = connection
        lead.lend(lane)
        self._serve_safely(connection, lane)
        still_leading = lead.come_back(lane)
        self._put_back(connection, still_leading)
        return still_leading

    def _put_back(self, connection: Connection, leads: bool) -> None:
        """Watch a connection that was served; or queue it behind others, if its turn is over.

        `leads`: the caller has the lead.
        """
        if connection.parser.requests and not (connection.outbox or connection.closing or connection.closed):
            self._disarm(connection)
            self._ready.append(connection)
            if not leads:
                self.wake()
        else:
            self._watch(connection)

    def _read_in_a_crowd(self, fd: int, size: int) -> bytes:
        return self._held.recv(fd) if self._lead.crowded else original.read(fd, size)

    def _modify_in_a_crowd(self, fd: int, mask: int) -> None:
        if self._lead.crowded:
            self._held.modify(self._epoll.fileno(), fd, mask)
        else:
            self._epoll.modify(fd, mask)

    def _send_in_a_crowd(self, sock: socket.socket, data: bytes) -> int:
        if self._lead.crowded and len(data) <= READ_SIZE:
            return self._held.send(sock.fileno(), data)
        return sock.send(data)

    def _start_watcher(self) -> bool:
        try:
            self._lead.watch()
        except RuntimeError as error:  # no more threads may be made: it goes on as before
            self._had_long = False
            self._log.warning("no_watcher", reason=str(error))
            return False
        return True

    def _let_go(self) -> None:
        if self._in_hand is not None:
            self._disarm(self._in_hand)

    def _mind(self) -> None:
        """Lead without serving while all threads are in the app; called by the watcher."""
        try:
            self._mind_connections(Lane(self._cell, self._threads))
        except Exception:  # noqa: BLE001 - a defect of ours, as in _run
            self._log.error("internal_error", traceback=traceback.format_exc())
            self.stop()

    def _mind_connections(self, lane: Lane) -> None:
        # Siblings that are free take what comes; it must not wake us.
        self._accept_off()
        while not self._done and not self._lead.wanted:
            if not self._events:
                if self._now >= self._next_sweep or self._sweeping or self.draining:
                    self._sweep(self._now, lane)
                # What is ready waits for a thread, not for us.
                self._events.extend(self._epoll.poll(SWEEP_DRAINING if self.draining else SWEEP, BATCH))
                self._cell.header[layout.HEARTBEAT] = self._now = monotonic_ns()
            while self._events and not self._lead.wanted:
                fd, _ = self._events.popleft()
                connection = self._connections.get(fd)
                if connection is None:
                    self._other_event(fd)
                elif (
                    connection.armed
                    and not self._give_waiting(connection, lane)
                    and self._receive(connection, lane, self._now)
                ):
                    self._disarm(connection)
                    connection.idle_since = self._now
                    self._ready.append(connection)

    # -- what time brings --------------------------------------------------------------------------------
