"""Deaths: collects every child that has ended and finds out what it was and what is lost with it."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ostler.control.views import ExitView
from ostler.daemon.bucket import Bucket
from ostler.daemon.children.handles import ForkServerHandle, WorkerHandle
from ostler.daemon.reporting.ledger import ExitFacts, fork_server_leaving
from ostler.fleet import events
from ostler.fleet.model import ExitStatus, WorkerState
from ostler.osapi.process import is_to_be_reaped, thread_group, zombie_status

if TYPE_CHECKING:
    from ostler.daemon.shell import Shell

_STRANGERS = 64
# Deaths that are booked in one pass of the loop: an app can leave us orphans faster than we can reap them.
_DEATHS_A_PASS = 64
# How many requests that were lost are named at once, and a second in the long run: what a worker had in hand
# it says itself, and its app's user may end it time and again.
_LOST, _LOST_RATE = 512, 20


class Dead(NamedTuple):
    """peak_memory: bytes (getrusage(2), ru_maxrss), if it is known."""

    pid: int
    status: ExitStatus
    peak_memory: int | None


class Tracee(NamedTuple):
    """A thread that is not dead but has stopped. A child may make its parent its tracer (PTRACE_TRACEME of
    ptrace(2)), and the kernel tells a tracer of stops, too."""

    tid: int


def dead_children() -> Iterator[Dead | Tracee]:
    """Collect all children that have ended, strangers too: we are the subreaper, perhaps PID 1."""
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
    """Tells the shell's fleet of deaths.

    Attributes:
        leaving: fork servers that the fleet does not look after any more, by pid.
    """

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell
        self.leaving: dict[int, ForkServerHandle] = {}
        self._expected: dict[int, Callable[[ExitStatus], None]] = {}
        # The newest of those that were unknown: the pid of a worker among them may be reported later.
        self._strangers: deque[Dead] = deque(maxlen=_STRANGERS)
        self._lost = Bucket(_LOST, _LOST_RATE, time.monotonic())
        self._is_due = False

    def reap(self) -> None:
        """Book the deaths that there are, many of them in several passes of the loop.

        A defect of ours in one must not lose the others.
        """
        booked = 0
        for dead in islice(dead_children(), _DEATHS_A_PASS):
            if isinstance(dead, Tracee):
                self._shell.attempt(f"ending tracee {dead.tid}", partial(self._end_tracee, dead.tid))
            else:
                self._shell.attempt(f"booking the death of process {dead.pid}", partial(self._ended, dead))
            booked += 1
        if booked == _DEATHS_A_PASS and not self._is_due:
            self._is_due = True
            self._shell.loop.call_soon(self._reap_due)

    def _reap_due(self) -> None:
        self._is_due = False
        self.reap()

    def _ended(self, dead: Dead) -> None:
        shell = self._shell
        worker_id = shell.worker_id_of.pop(dead.pid, None)
        worker = shell.workers.get(worker_id) if worker_id is not None else None
        if worker is not None:
            self.worker_ended(worker, dead.status, dead.peak_memory)
        elif (old := self.leaving.pop(dead.pid, None)) is not None:
            self._fork_server_ended(old, dead, replaced=True)
        elif (callback := self._expected.pop(dead.pid, None)) is not None:
            callback(dead.status)
        else:
            self._strangers.append(dead)
            for handle in list(shell.fork_servers.values()):
                if handle.pid == dead.pid:
                    self._fork_server_ended(handle, dead)

    def _end_tracee(self, tid: int) -> None:
        """We have no use for a tracee, which would stop at each signal and wait for us to let it go on."""
        pid = thread_group(tid)
        shell = self._shell
        worker_id = shell.worker_id_of.get(pid)
        servers = (*shell.fork_servers.values(), *self.leaving.values())
        child: WorkerHandle | ForkServerHandle | None = (
            shell.workers.get(worker_id)
            if worker_id is not None
            else next((server for server in servers if server.pid == pid), None)
        )
        if child is None:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        elif not child.problem:
            shell.inbox.end(child, "it has made the supervisor its tracer (PTRACE_TRACEME)")

    def kill(self, child: WorkerHandle | ForkServerHandle) -> None:
        """End a process for sure. One that we may not end is booked as if it had ended.

        It executes a program with other rights, say (execve(2), set-user-ID), and may live as long as it
        likes. With its channel it has lost all that it had of us.
        """
        if child.send_signal(signal.SIGKILL):
            return
        if not child.problem:
            self._shell.inbox.note(child, "it has taken other rights, so that it can't be killed")
        if child.pid is not None:
            self._ended(Dead(child.pid, ExitStatus(), None))

    # -- deaths that are kept from us --------------------------------------------------------------------

    def watch(self, child: WorkerHandle | ForkServerHandle) -> None:
        """Hear of a child's death from its pidfd, too.

        wait(2) does not tell of a child that another process traces (ptrace(2)), a sibling of it for
        instance, before that one has let go of it.
        """
        if child.pidfd >= 0:
            with suppress(OSError):  # there is no room for more of them: SIGCHLD has to do
                self._shell.loop.add_reader(child.pidfd, self._on_pidfd, child)

    def unwatch(self, child: WorkerHandle | ForkServerHandle) -> None:
        """To be called before its pidfd is closed."""
        if child.pidfd >= 0:
            self._shell.loop.remove_reader(child.pidfd)

    def _on_pidfd(self, child: WorkerHandle | ForkServerHandle) -> None:
        self.unwatch(child)
        self.reap()
        if not child.is_ours or child.pid is None or is_to_be_reaped(child.pid):
            return  # as usual, now or in one of the next passes
        dead = Dead(child.pid, _zombies_status(child.pid), None)
        self._shell.attempt(f"booking the death of process {child.pid}", partial(self._ended, dead))

    # -- strangers ---------------------------------------------------------------------------------------

    def expect(self, pid: int, callback: Callable[[ExitStatus], None]) -> None:
        """Call back when a child ends that is neither a worker nor a fork server."""
        self._expected[pid] = callback

    def expects(self, pid: int) -> bool:
        """Whether a process is such a child."""
        return pid in self._expected

    def ended_before_known(self, handle: WorkerHandle) -> None:
        """A worker was dead before its fork server could report its pid."""
        found = [dead for dead in self._strangers if dead.pid == handle.pid]
        status, memory = (found[-1].status, found[-1].peak_memory) if found else (ExitStatus(), None)
        self.worker_ended(handle, status, memory)

    def worker_ended(self, handle: WorkerHandle, status: ExitStatus, peak_memory: int | None = None) -> None:
        """A worker is dead; its handle is given up.

        The fleet always hears of it. What else is to be found out and done are steps of which each may fail.
        """
        attempt = self._shell.attempt
        handle.reaped()
        attempt("a dead worker's last messages", lambda: self._shell.inbox.read_last(handle))
        attempt("requests lost with a worker", lambda: self._report_lost_with(handle))
        dump = attempt("a dead worker's stacks", lambda: self._take_dump(handle, status)) or ""
        end = attempt("an entry of the ledger", lambda: self._record(handle, status, peak_memory, dump))
        attempt("hooks of a worker's end", lambda: self._shell.hooks.worker_ended(handle, status))
        attempt("giving up a worker", lambda: self._shell.forget(handle.worker_id))
        self._shell.submit(
            events.WorkerExited(
                handle.worker_id,
                status,
                outsider=end is not None and end.cause == "killed by an outsider",
                request=next(iter(end.last_requests), "") if end is not None else "",
                traceback=end.stack if end is not None else None,
                problem=handle.problem,
            )
        )

    def _report_lost_with(self, handle: WorkerHandle) -> None:
        worker = self._shell.fleet.workers.get(handle.worker_id)
        if worker is not None and worker.state is not WorkerState.STOPPING:
            self.report_lost(handle)

    def _take_dump(self, handle: WorkerHandle, status: ExitStatus) -> str:
        """What faulthandler wrote last; in the log if it was because of the worker's end."""
        dump = handle.take_dumps()
        if not dump and status.signal == signal.SIGABRT and signal.SIGABRT in handle.sent:
            dump = handle.last_dump  # it was read together with the dump of an overdue request
        if dump and status.signal is not None:
            fields = {"slot": handle.slot, "pid": handle.pid, "status": str(status), "stack": dump}
            name = "worker_aborted" if status.signal == signal.SIGABRT else "worker_crashed"
            self._shell.journal.record("error", name, fields)
        return dump

    def _record(
        self, handle: WorkerHandle, status: ExitStatus, peak_memory: int | None, dump: str
    ) -> ExitView:
        shell = self._shell
        counts = shell.attempt("a dead worker's counts", lambda: shell.scoreboard.counts(handle.cell))
        last = shell.attempt(
            "a dead worker's last requests", lambda: shell.scoreboard.last_requests(handle.cell)
        )
        facts = ExitFacts(
            "worker",
            handle.pid or 0,
            handle.generation,
            status,
            time.monotonic() - handle.spawned_at,
            handle.slot,
            shell.fleet.workers.get(handle.worker_id),
            sent=handle.sent,
            signalled=handle.signalled,
            requests=counts.requests if counts is not None else 0,
            last_requests=last or (),
            peak_memory=peak_memory,
            dump=dump or handle.last_dump,
            problem=handle.problem,
        )
        return shell.ledger.record(facts)

    def _fork_server_ended(self, handle: ForkServerHandle, dead: Dead, replaced: bool = False) -> None:
        """The same of a fork server, also of one that is no generation's any more."""
        attempt = self._shell.attempt
        handle.reaped()
        attempt("a dead fork server's last messages", lambda: self._shell.inbox.read_last(handle))
        attempt("an entry of the ledger", lambda: self._note_fork_server(handle, dead, replaced))
        self._shell.fork_server_ended(handle, dead.status)

    def _note_fork_server(self, handle: ForkServerHandle, dead: Dead, replaced: bool) -> None:
        fleet = self._shell.fleet
        leaving = handle.left_for or fork_server_leaving(fleet, handle.generation, replaced)
        tried = fleet.reload if leaving == "boot failed" else None
        facts = ExitFacts(
            "fork server",
            dead.pid,
            handle.generation,
            dead.status,
            time.monotonic() - handle.spawned_at,
            leaving=leaving,
            sent=handle.sent,
            dump=tried.traceback or "" if tried and tried.generation == handle.generation else "",
            problem=handle.problem,
            # Not its peak memory: what exec replaced counts there, and that was our own size.
        )
        self._shell.ledger.record(facts)

    def report_lost(self, handle: WorkerHandle) -> None:
        """Name the requests that end with the process."""
        now = time.monotonic()
        found = self._shell.scoreboard.in_flight(handle.cell)
        for number, request in enumerate(found):
            if not self._lost.take(now):
                left = {"slot": handle.slot, "pid": handle.pid, "requests": len(found) - number}
                self._shell.journal.record("warning", "requests_lost", left)
                return
            fields = {
                "slot": handle.slot,
                "pid": handle.pid,
                "thread": request.thread + 1,
                "method": request.method,
                "path": request.path,
                "age": round(now - request.started, 3),
            }
            self._shell.journal.record("warning", "request_lost", fields)
