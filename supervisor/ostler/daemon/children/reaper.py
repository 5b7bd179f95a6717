"""Reaps children, records each end in the ledger, and reports it to the fleet."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import NamedTuple

import msgspec

from ostler.control.views import ExitView
from ostler.daemon.children.handles import AnyChild, ForkServerHandle, WorkerHandle
from ostler.daemon.children.inbox import Inbox
from ostler.daemon.children.ports import Ports
from ostler.daemon.reporting.ledger import ExitInfo, Ledger, fork_server_leaving
from ostler.fleet import events
from ostler.fleet.model import ExitStatus, WorkerState
from ostler.osapi.process import is_to_be_reaped, thread_group, zombie_status
from ostler.scoreboard.reader import Scoreboard
from ostler.token_bucket import TokenBucket

_UNKNOWN_KEPT = 64
# Deaths that are processed in one pass of the loop: an app can leave orphans to the supervisor faster than it
# can reap them.
_DEATHS_A_PASS = 64
# How many lost requests are logged one by one at once, and a second in the long run: workers themselves
# report what they have in flight, and the app's user may end them time and again.
_LOST, _LOST_RATE = 512, 20


class Dead(msgspec.Struct, frozen=True):
    """A child that was reaped. peak_memory: bytes (getrusage(2), ru_maxrss), None if it is not known."""

    pid: int
    status: ExitStatus
    peak_memory: int | None


class Tracee(NamedTuple):
    """A thread that is not dead but has stopped. A child may make its parent its tracer (PTRACE_TRACEME of
    ptrace(2)), and the kernel reports stops to a tracer, too."""

    tid: int


class ReaperState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries: the newest deaths of processes that were not known."""

    unknown: list[Dead] = []


def dead_children() -> Iterator[Dead | Tracee]:
    """Collect all children that have ended, also unknown ones: the supervisor is a subreaper, or PID 1."""
    while True:
        try:
            pid, status, usage = os.wait3(os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield Tracee(pid) if os.WIFSTOPPED(status) else Dead(pid, _status(status), usage.ru_maxrss * 1024)


def _zombies_status(pid: int) -> ExitStatus:
    status = zombie_status(pid)
    return _status(status) if status is not None else ExitStatus()


def _status(status: int) -> ExitStatus:
    code = os.waitstatus_to_exitcode(status)
    return ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)


class Reaper:
    """Reaps children and reports their deaths to the fleet. Called only by the event loop's thread.

    Args:
        ports: see there.
        scoreboard: for what a dead worker had in flight and has counted.
        ledger: for each death.
        inbox: for what a dead child has sent last.
        on_child_ended: called first with any dead child.
        on_worker_ended: called with a dead worker, before it is given up.
        forget_worker: gives up a dead worker's handle.
        on_fork_server_ended: called with a dead fork server, and gives up its handle.
    """

    def __init__(
        self,
        ports: Ports,
        scoreboard: Scoreboard,
        ledger: Ledger,
        inbox: Inbox,
        *,
        on_child_ended: Callable[[AnyChild, ExitStatus], None],
        on_worker_ended: Callable[[WorkerHandle, ExitStatus], None],
        forget_worker: Callable[[int], None],
        on_fork_server_ended: Callable[[ForkServerHandle, ExitStatus], None],
    ) -> None:
        self._ports = ports
        self._scoreboard = scoreboard
        self._ledger = ledger
        self._inbox = inbox
        self._on_child_ended = on_child_ended
        self._on_worker_ended = on_worker_ended
        self._forget_worker = forget_worker
        self._on_fork_server_ended = on_fork_server_ended
        self._expected: dict[int, Callable[[ExitStatus], None]] = {}
        # The newest of those that were not known: a fork server may report one as a worker later.
        self._unknown: deque[Dead] = deque(maxlen=_UNKNOWN_KEPT)
        self._lost = TokenBucket(_LOST_RATE, _LOST, time.monotonic())
        self._is_due = False

    def snapshot(self) -> ReaperState:
        return ReaperState(list(self._unknown))

    def restore(self, state: ReaperState) -> None:
        """Continue where the program before this one stopped."""
        self._unknown.extend(state.unknown)

    def reap(self) -> None:
        """Process the deaths that there are, many of them in several passes of the loop.

        If our own code fails at one the others are processed all the same.
        """
        attempt = self._ports.attempt
        processed = 0
        for dead in islice(dead_children(), _DEATHS_A_PASS):
            if isinstance(dead, Tracee):
                attempt(f"ending tracee {dead.tid}", partial(self._end_tracee, dead.tid))
            else:
                attempt(f"processing the death of process {dead.pid}", partial(self._ended, dead))
            processed += 1
        if processed == _DEATHS_A_PASS and not self._is_due:
            self._is_due = True
            self._ports.loop.call_soon(self._reap_due)

    def _reap_due(self) -> None:
        self._is_due = False
        self.reap()

    def _ended(self, dead: Dead) -> None:
        children = self._ports.children
        child = children.with_pid(dead.pid)
        if isinstance(child, WorkerHandle):
            self.worker_ended(child, dead.status, dead.peak_memory)
        elif child is not None:
            self._fork_server_ended(child, dead)
        elif (callback := self._expected.pop(dead.pid, None)) is not None:
            callback(dead.status)
        else:
            self._unknown.append(dead)

    def _end_tracee(self, tid: int) -> None:
        """A traced process stops at each signal until the supervisor continues it, so it is killed."""
        pid = thread_group(tid)
        child = self._ports.children.with_pid(pid)
        if child is None:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        elif not child.record.problem:
            self.end_violator(child, "it has made the supervisor its tracer (PTRACE_TRACEME)")

    # -- ending children ---------------------------------------------------------------------------------

    def end_violator(self, child: AnyChild, problem: str) -> None:
        """Kill a child that has done what it may not. The rest follows from its death."""
        self._inbox.record_violation(child, problem)
        self._inbox.unwatch(child)
        if isinstance(child, WorkerHandle) and (child.pid is None or not child.record.is_ours):
            # There is no such process, so no death would be reported: its fork server has sent this.
            self._forget_worker(child.worker_id)
            self._ports.submit(events.SpawnFailed(child.worker_id, f"protocol error: {problem}"))
        else:
            self.kill(child)

    def kill(self, child: AnyChild) -> None:
        """Send SIGKILL. A process that can't be signalled is treated as ended.

        It executes a program with other rights, say (execve(2), set-user-ID), and may live as long as it
        likes. With its channel it has lost all that it had of the supervisor.
        """
        if child.send_signal(signal.SIGKILL):
            return
        if not child.record.problem:
            self._inbox.record_violation(child, "it has taken other rights, so that it can't be killed")
        if child.pid is not None:
            self._ended(Dead(child.pid, ExitStatus(), None))

    # -- deaths that wait(2) does not report -------------------------------------------------------------

    def watch(self, child: AnyChild) -> None:
        """Learn of a child's death from its pidfd, too.

        wait(2) does not report a child that another process traces (ptrace(2)), a sibling of it for
        instance, before the tracer has detached from it.
        """
        if child.pidfd >= 0:
            with suppress(OSError):  # the epoll takes no more: SIGCHLD alone must suffice
                self._ports.loop.add_reader(child.pidfd, self._on_pidfd, child)

    def unwatch(self, child: AnyChild) -> None:
        """To be called before its pidfd is closed."""
        if child.pidfd >= 0:
            self._ports.loop.remove_reader(child.pidfd)

    def _on_pidfd(self, child: AnyChild) -> None:
        self.unwatch(child)
        self.reap()
        if not child.record.is_ours or child.pid is None or is_to_be_reaped(child.pid):
            return  # as usual, now or in one of the next passes
        dead = Dead(child.pid, _zombies_status(child.pid), None)
        self._ports.attempt(f"processing the death of process {child.pid}", partial(self._ended, dead))

    # -- processes that are neither workers nor fork servers ----------------------------------------------

    def expect(self, pid: int, callback: Callable[[ExitStatus], None]) -> None:
        """Call back when a child ends that is neither a worker nor a fork server."""
        self._expected[pid] = callback

    def expects(self, pid: int) -> bool:
        """Whether a process is such a child."""
        return pid in self._expected

    def ended_before_known(self, handle: WorkerHandle) -> None:
        """A worker was dead before its fork server could report its pid."""
        found = [dead for dead in self._unknown if dead.pid == handle.pid]
        status, memory = (found[-1].status, found[-1].peak_memory) if found else (ExitStatus(), None)
        self.worker_ended(handle, status, memory)

    # -- dead workers and fork servers ---------------------------------------------------------------------

    def worker_ended(self, handle: WorkerHandle, status: ExitStatus, peak_memory: int | None = None) -> None:
        """A worker is dead; its handle is given up.

        The death is always reported to the fleet. Each of the other steps may fail.
        """
        attempt = self._ports.attempt
        handle.reaped()
        attempt("what a worker has started", lambda: self._on_child_ended(handle, status))
        attempt("a dead worker's last messages", lambda: self._inbox.read_last(handle))
        attempt("requests lost with a worker", lambda: self._report_lost_with(handle))
        dump = attempt("a dead worker's stacks", lambda: self._take_dump(handle, status)) or ""
        end = attempt("an entry of the ledger", lambda: self._record(handle, status, peak_memory, dump))
        attempt("hooks of a worker's end", lambda: self._on_worker_ended(handle, status))
        attempt("giving up a worker", lambda: self._forget_worker(handle.worker_id))
        self._ports.submit(
            events.WorkerExited(
                handle.worker_id,
                status,
                outsider=end is not None and end.cause == "killed by an outsider",
                request=next(iter(end.last_requests), "") if end is not None else "",
                traceback=end.stack if end is not None else None,
                problem=handle.record.problem,
            )
        )

    def _report_lost_with(self, handle: WorkerHandle) -> None:
        worker = self._ports.state().workers.get(handle.worker_id)
        if worker is not None and worker.state is not WorkerState.STOPPING:
            self.report_lost(handle)

    def _take_dump(self, handle: WorkerHandle, status: ExitStatus) -> str:
        """The last stack dump; it is logged if it comes from the worker's end."""
        dump = handle.take_dumps()
        if not dump and status.signal == signal.SIGABRT and signal.SIGABRT in handle.record.sent_signals:
            dump = handle.record.last_dump  # it was read together with the dump of an overdue request
        if dump and status.signal is not None:
            fields = {"slot": handle.slot, "pid": handle.pid, "status": str(status), "stack": dump}
            name = "worker_aborted" if status.signal == signal.SIGABRT else "worker_crashed"
            self._ports.journal.record("error", name, fields)
        return dump

    def _record(
        self, handle: WorkerHandle, status: ExitStatus, peak_memory: int | None, dump: str
    ) -> ExitView:
        attempt, scoreboard, record = self._ports.attempt, self._scoreboard, handle.record
        counts = attempt("a dead worker's counts", lambda: scoreboard.counts(handle.cell))
        last = attempt("a dead worker's last requests", lambda: scoreboard.last_requests(handle.cell))
        info = ExitInfo(
            "worker",
            handle.pid or 0,
            handle.generation,
            status,
            time.monotonic() - record.spawned_at,
            handle.slot,
            self._ports.state().workers.get(handle.worker_id),
            sent=record.sent_signals,
            signalled=record.signalled,
            requests=counts.requests if counts is not None else 0,
            last_requests=last or (),
            peak_memory=peak_memory,
            dump=dump or record.last_dump,
            problem=record.problem,
        )
        return self._ledger.record(info)

    def _fork_server_ended(self, handle: ForkServerHandle, dead: Dead) -> None:
        attempt = self._ports.attempt
        handle.reaped()
        attempt("what a fork server has started", lambda: self._on_child_ended(handle, dead.status))
        replaced = self._ports.children.is_leaving(handle)
        attempt("a dead fork server's last messages", lambda: self._inbox.read_last(handle))
        attempt("an entry of the ledger", lambda: self._record_fork_server(handle, dead, replaced))
        self._on_fork_server_ended(handle, dead.status)

    def _record_fork_server(self, handle: ForkServerHandle, dead: Dead, replaced: bool) -> None:
        state, record = self._ports.state(), handle.record
        leaving = record.exit_cause or fork_server_leaving(state, handle.generation, replaced)
        tried = state.reload if leaving == "boot failed" else None
        info = ExitInfo(
            "fork server",
            dead.pid,
            handle.generation,
            dead.status,
            time.monotonic() - record.spawned_at,
            leaving=leaving,
            sent=record.sent_signals,
            dump=tried.traceback or "" if tried and tried.generation == handle.generation else "",
            problem=record.problem,
            # Not its peak memory: what exec replaced counts there, and that was the supervisor's own size.
        )
        self._ledger.record(info)

    def report_lost(self, handle: WorkerHandle) -> None:
        """Log the requests that end with the process."""
        now = time.monotonic()
        found = self._scoreboard.in_flight(handle.cell)
        for number, request in enumerate(found):
            if not self._lost.take(now):
                left = {"slot": handle.slot, "pid": handle.pid, "requests": len(found) - number}
                self._ports.journal.record("warning", "requests_lost", left)
                return
            fields = {
                "slot": handle.slot,
                "pid": handle.pid,
                "thread": request.thread + 1,
                "method": request.method,
                "path": request.path,
                "age": round(now - request.started, 3),
            }
            self._ports.journal.record("warning", "request_lost", fields)
