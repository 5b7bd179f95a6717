"""The engine of the worker classes `sync` and `gthread`: threads that take turns at one reactor.

One thread at a time is the leader: it polls, receives, and runs the app itself; see `leader_followers` for
how another thread becomes the leader when the app takes long.

Slow clients cost no app time: the app is called when a request has been received whole (with stream_request:
when its head has), and what a client does not take of an answer is kept and sent when it does.
"""

import socket
import traceback
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from types import FrameType
from typing import ClassVar, Self

from ostler import native
from ostler.osapi import original
from ostler.osapi.wake import Wake
from ostler.scoreboard.layout import LEAST_QUEUED
from ostler.scoreboard.request_slot import RequestSlot
from ostler.settings.classes import Core
from ostler.workers import readiness
from ostler.workers.acceptor import FULL_CHECK_SECONDS
from ostler.workers.base import BaseWorker, Context
from ostler.workers.busy_polling import BusyPolling
from ostler.workers.connection import Connection
from ostler.workers.leader_followers import LeaderFollowers
from ostler.workers.parts import Parts
from ostler.workers.phase import OPEN
from ostler.workers.reactor import IN, Reactor
from ostler.workers.serving_threads import ServingThreads
from ostler.workers.soft_interrupt import SoftInterrupts
from ostler.workers.sweeper import SWEEP, SWEEP_DRAINING
from ostler.workers.system_calls import PLAIN, contended_calls
from ostler.workers.units import SECOND
from ostler.wsgi.forked import leave_answered

MANY_EVENTS = 8
"""When so many events come at once (8), some of them wait long; then a sibling gets a connection."""
# A pass of the loop that takes no longer (ns) is brief: a request that came during it has not waited.
_BRIEF = 250_000
# How long (ns) the pass after a brief one may take until it gets to that request, which has not waited then.
_QUICK_PASS = LEAST_QUEUED - _BRIEF
# Added to the present time: so far ahead that every request counts as one that may have waited.
_UNKNOWN_WORKED_UNTIL = 1_000_000 * SECOND
# If requests take longer than this (ns) on average the leadership is released before the app is called.
_SLOW_APP = 300_000

# A client may send thousands of requests at once, and others must not wait until all are answered (ns).
_TURN = 20_000_000


class Engine(BaseWorker):
    """Serves one app on inherited listeners, with `settings.threads` threads.

    Methods that begin with an underscore are called by the leader, unless they say otherwise. Exceptions:
    `_run` is what each thread runs; `_serve` and `_put_back` may end in a thread that was the leader when
    they began.

    Attributes:
        soft_interrupts: ends requests that take too long, when the supervisor says so.
        leader: which thread polls.
        parts: what the engine is made of.
    """

    core: ClassVar[Core] = native.CORE
    calls_request_hooks: ClassVar[bool] = True
    serves_tls: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        self._threads = context.settings.threads
        self._accounting = context.accounting
        self._heartbeat = context.accounting.heartbeat
        self._log = context.log
        self._access = context.access
        self.soft_interrupts = SoftInterrupts(context.accounting)
        wake = Wake()
        self.leader = LeaderFollowers(self._threads, self._detach_current, self._poll_only, wake.send)
        threaded = self._threads > 1
        calls = contended_calls(self.leader.is_contended) if threaded else PLAIN
        self._reactor = Reactor(wake, calls)
        # With several threads each line is written at once, else all of a pass when it is over.
        flush = self._access.flush if threaded and self._access is not None else _nothing
        self.parts = parts = Parts.of(
            *(context, self._reactor, calls, self.soft_interrupts, flush, threaded, _TURN), self._on_stays
        )
        self._acceptor, self._siblings, self._sweeper = parts.acceptor, parts.siblings, parts.sweeper
        self._date, self._drain, self._runner = parts.date, parts.drain, parts.runner
        self._open = parts.table.open
        self._receive = parts.receiver.receive
        self._run_requests = parts.runner.run
        self._watch, self._unwatch = parts.reactor.watch, parts.reactor.unwatch
        self._slots: dict[int, RequestSlot] = {}
        self._other_threads = ServingThreads(self._run)
        # Events that were taken from the kernel, and connections with whole requests that wait for a thread.
        self._events: deque[tuple[int, int]] = deque()
        self._ready: deque[Connection] = deque()
        # Events go before connections that wait already.
        self._new_first = False
        # What the leader serves while it offers the leadership.
        self._current: Connection | None = None
        # The leadership was offered from within a request, by `on_message` or `_on_stays`.
        self._offered_within = False
        # A request that gets to the app by this time has not waited; see RequestRunner.
        self._prompt_until = 0
        # When all that was found in the last pass had been served.
        self._worked_until = 0
        # The worker had nothing to do before the last poll returned.
        self._was_idle = False
        # The kernel is asked about each request that may have waited; see QueueTimes.
        self._asks_for_all = context.settings.queue_timeout > 0
        self._done = False
        self._busy_polling = BusyPolling(
            *(parts, self._heartbeat, self._events, self._ready, self._sweep, self._busy_polling_is_over)
        )

    # -- what the worker's life cycle calls ------------------------------------------------------------------

    @classmethod
    def create(cls, context: Context) -> Self:
        return cls(context)

    @property
    def draining(self) -> bool:  # type: ignore[override]
        return self._drain.asked

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._reactor.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self._reactor.remove_reader(fd)

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.soft_interrupts.interrupt(signum, frame)

    def extend_deadline(self, seconds: float) -> None:
        self.soft_interrupts.extend(seconds)

    def on_message(self) -> None:
        """A message came, maybe while the only thread is in the app: have the watcher poll, if need be.

        Must be called from a signal handler of the main thread.
        """
        slot = self._slots.get(0)
        if slot is not None and slot.started:
            self._offer_from_within(slot)

    def _on_stays(self, slot: RequestSlot) -> None:
        """The request in `slot` may stay in the app for any time: for a websocket, or an event stream.

        Called in any thread of the app.
        """
        if self._threads == 1 and original.get_ident() == slot.ident:
            self._offer_from_within(slot)

    def _offer_from_within(self, slot: RequestSlot) -> None:
        """Have the watcher poll while the only thread is in a request; called in that thread."""
        if self.leader.has_watcher or not self._siblings:
            return
        if self._offered_within:
            return  # a message came while this function does its work
        self._offered_within = True
        if self._start_watcher():
            self.leader.offer(slot)
        else:
            self._offered_within = False

    def drain(self, hand_over: bool = False, seconds: float | None = None) -> None:
        """See BaseWorker; any thread may call it: it sets a flag that the leader reads in its next pass."""
        self._drain.ask(hand_over, seconds)
        self._reactor.wake()

    def empty_queue(self, listeners: list[socket.socket]) -> None:
        self._drain.empties = frozenset(listener.fileno() for listener in listeners)

    def abandon(self) -> None:
        """See BaseWorker; may be called from a signal handler of the main thread."""
        self._drain.abandoned = True
        self.drain()
        if self._threads == 1 and not self.leader.has_watcher:
            self._acceptor.close_listeners()  # this thread may be in the app, and there is no other

    def stop(self) -> None:
        """See BaseWorker; any thread and any signal handler may call it."""
        self._done = True
        self._reactor.wake()

    def start_threads(self) -> None:
        if self._threads > 1 or self.parts.late is not None:
            self.leader.start_watcher()
        if self._threads > 1:
            self._other_threads.make(self._threads - 1)

    def run(self) -> None:
        """Serve until drained. The calling thread is one of those that serve."""
        # The main thread comes last: while it is in the app, messages of the supervisor are read later.
        self._other_threads.release()
        try:
            self._run(0)
        finally:
            self.leader.stop()
            if self._access is not None:
                self._access.flush()
        self._other_threads.join(self._drain.deadline or 0)

    def run_once(self) -> None:
        """Serve what is there now, without waiting; instead of `run`, in a worker that has no clients yet."""
        slot = self.slot(0)
        self._wait(slot, 0.0)
        self._serve_events(slot)

    def descriptors(self) -> set[int]:
        """See BaseWorker; called by the leader."""
        return self._reactor.descriptors() | set(self._open)

    def forked_by_app(self) -> None:
        # No check is needed then for each request of a worker.
        Connection.send = Connection.send_file = leave_answered  # type: ignore[method-assign]

    def private_descriptors(self) -> list[int]:
        return [*self._open, *readiness.own_descriptors()]

    def close(self) -> None:
        self.parts.table.close_all(self.slot(0))
        self._reactor.close()

    def slot(self, number: int) -> RequestSlot:
        """The request slot of a thread, counted from 0, or of the watcher; called by that thread."""
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = self._accounting.thread_slot(number)
        return slot

    # -- the loop --------------------------------------------------------------------------------------------

    def _run(self, thread: int) -> None:
        """What each thread does that serves."""
        slot = self.slot(thread)
        leader = self.leader
        while not self._done:
            leader.acquire(self._runner.average > _SLOW_APP, handles_signals=thread == 0)
            # It is not known how long requests have waited that came meanwhile, or that others have left.
            self._worked_until = self._reactor.read_clock() + _UNKNOWN_WORKED_UNTIL
            self._prompt_until = 0
            is_leader = True
            try:
                is_leader = self._poll_and_serve(slot)
            except Exception:
                # A defect of ours; the main thread's ends the worker, and so must another's.
                self.stop()
                if thread == 0:
                    raise
                self._log.error("internal_error", traceback=traceback.format_exc())
                leader.release_if_held()
                return
            if is_leader:
                leader.release()

    def _poll_and_serve(self, slot: RequestSlot) -> bool:
        """Poll and serve until the end; False if another thread has become the leader before."""
        while not self._done:
            if not self._events or self._new_first:
                self._wait(slot, 0.0 if self._events else self._poll_timeout())
            if not self._serve_events(slot):
                return False
        return True

    def _poll_timeout(self) -> float:
        if self._done or self._ready or self._sweeper.remaining:
            return 0.0
        if self._drain.asked:
            return SWEEP_DRAINING
        return FULL_CHECK_SECONDS if self._acceptor.waits_for_room else SWEEP

    def _wait(self, slot: RequestSlot, timeout: float) -> None:
        """Wait for events, and put them into the queue."""
        reactor, acceptor, sweeper = self._reactor, self._acceptor, self._sweeper
        before = reactor.now
        if before >= sweeper.due or sweeper.remaining or self._drain.asked:
            self._sweep(slot)
        if not acceptor.accepting:
            acceptor.try_start(slot, monotonic_ns())
        if self._access is not None:
            self._access.flush()
        unseen = self._worked_until - before
        events = reactor.poll(0.0 if self._done else timeout)
        now = reactor.now
        self._was_idle = now - self._worked_until > _BRIEF
        self._heartbeat(now)
        # A request has waited at most since the last look, plus the time that those before it take.
        self._prompt_until = now + (_QUICK_PASS if unseen < _BRIEF else LEAST_QUEUED - unseen)
        if now >= self._date.due:
            self._each_second(now)
        if events:
            self._events.extend(events)
        elif acceptor.accepting and not sweeper.remaining:
            # An idle worker looks for connections that the kernel announced to a sibling which is busy now.
            self._events.extend((fd, IN) for fd in acceptor.sources)

    def _each_second(self, now: int) -> None:
        self.parts.limited.report()
        self._date.update(now)

    def _sweep(self, slot: RequestSlot) -> None:
        # As of the last look at the sockets: what came while the app was busy is not late.
        now = self._reactor.now
        self._sweeper.sweep(now, slot)
        if self._drain.asked and (
            not (self._open or self._events or self._ready or self._acceptor.may_accept)
            or self._drain.is_over(now)
        ):
            self._done = True

    def _serve_events(self, slot: RequestSlot) -> bool:
        """Serve what came; False if another thread is the leader afterwards."""
        events = self._events
        # Waiting connections and new events take turns: at each of them the leader may change.
        ready = 0 if events and self._new_first else len(self._ready)
        self._new_first = bool(ready)
        for _ in range(ready):
            connection = self._ready.popleft()
            self._prompt_until = connection.idle_since + LEAST_QUEUED
            if not self._serve(connection, slot):
                return False
        connections, receive = self._open, self._receive
        now = self._reactor.now
        many = len(events) >= MANY_EVENTS
        if many and now >= self._siblings.share_due and self._siblings and self._acceptor.accepting:
            self._share(slot, now)
        arrivals: list[int] = []
        while events:
            fd, _ = events.popleft()
            known = connections.get(fd)
            if known is None:
                if fd in self._acceptor.sources:
                    arrivals.append(fd)
                else:
                    self._reactor.call_back(fd)
            elif known.watched and receive(known, slot, now):
                if not self._serve(known, slot):
                    events.extend((fd, IN) for fd in arrivals)
                    return False
                now = known.idle_since  # when its answer was given
        if arrivals:
            # They wait for any worker, so they may have come before this one last polled. An idle worker
            # polls once a second, so what it finds has come since its last work. But this process may have
            # been stopped in that time, so with `queue_timeout` that is not assumed.
            idle_since = self._worked_until - SECOND + LEAST_QUEUED
            self._prompt_until = idle_since if self._was_idle and not self._asks_for_all else 0
        # Last: a connection that came while the app was busy has gone to a sibling that was not.
        for fd in arrivals:
            for _ in range(self._acceptor.arrivals_in_a_pass(1, now)):
                newcomer = self._acceptor.accept(fd, slot, now)
                if newcomer is None:
                    break
                if receive(newcomer, slot, now):
                    if not self._serve(newcomer, slot):
                        return False
                    now = newcomer.idle_since
        # Each request has noted when it ended. Other events matter only if there are many.
        self._worked_until = monotonic_ns() if many else now
        return True

    def _share(self, slot: RequestSlot, now: int) -> None:
        """Hand the connection of the last event off, if a sibling may be less busy."""
        if self._siblings.share(self._open.get(self._events[-1][0]), slot, now):
            self._events.pop()

    def _serve(self, connection: Connection, slot: RequestSlot) -> bool:
        """Serve a connection's requests; whether the caller is still the leader afterwards."""
        leader = self.leader
        if not leader.has_watcher:
            self._current = connection
            self._run_requests(connection, slot, self._prompt_until)
            if self._offered_within:
                is_leader = leader.withdraw(slot)
                self._put_back(connection, is_leader)
                return is_leader
            if connection.output or connection.mask != IN or connection.parser.requests:
                self._put_back(connection, True)
            if self._runner.had_long_request and self._siblings:
                self._start_watcher()
            return True
        if self._runner.average > _SLOW_APP and leader.is_wanted:
            self._unwatch(connection)
            prompt_until = self._prompt_until
            leader.release()
            self._run_requests(connection, slot, prompt_until)
            self._put_back(connection, False)
            return False
        self._current = connection
        prompt_until = self._prompt_until  # the thread that accepts the offer changes it
        leader.offer(slot)
        self._run_requests(connection, slot, prompt_until)
        is_leader = leader.withdraw(slot)
        self._put_back(connection, is_leader)
        return is_leader

    def _put_back(self, connection: Connection, is_leader: bool) -> None:
        """Watch a connection that was served; or queue it behind others, if its turn is over.

        Called by the thread that has served it; `is_leader`: it is the leader.
        """
        if connection.parser.requests and connection.phase is OPEN and not connection.output:
            self._unwatch(connection)
            self._ready.append(connection)
            if not is_leader:
                self._reactor.wake()
        else:
            self._watch(connection)

    def _start_watcher(self) -> bool:
        """Called by the leader, or in a signal handler in its thread; False if there is none."""
        try:
            self.leader.start_watcher()
        except RuntimeError as error:  # no more threads can be made: it goes on as before
            self._runner.had_long_request = False
            self._log.warning("no_watcher", reason=str(error))
            return False
        return True

    # -- called by LeaderFollowers ---------------------------------------------------------------------------

    def _detach_current(self) -> None:
        """Called by the thread that becomes the leader while the last one is in the app."""
        if self._current is not None:
            self._unwatch(self._current)

    def _poll_only(self) -> None:
        """Poll without serving while all threads are in the app; called by the watcher."""
        try:
            self._busy_polling.run(self.slot(self._threads))
        except Exception:  # noqa: BLE001 - a defect of ours, as in _run
            self._log.error("internal_error", traceback=traceback.format_exc())
            self.stop()

    def _busy_polling_is_over(self) -> bool:
        """Whether the watcher is to stop polling."""
        return self._done or self.leader.is_wanted


def _nothing() -> None:
    """Lines are written when the pass is over."""
