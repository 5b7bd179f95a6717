"""Deaths: collects every child that has ended and finds out what it was and what is lost with it."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from supervisor.daemon.bucket import Bucket
from supervisor.daemon.children import ForkServerHandle, WorkerHandle
from supervisor.daemon.ledger import ExitFacts, fork_server_leaving
from supervisor.fleet import events
from supervisor.fleet.model import ExitStatus, WorkerState

if TYPE_CHECKING:
    from supervisor.daemon.shell import Shell

_STRANGERS = 64
# How many requests that were lost are named at once, and a second in the long run: what a worker had in hand
# it says itself, and its app's user may end it time and again.
_LOST, _LOST_RATE = 512, 20


class Dead(NamedTuple):
    """peak_memory: bytes (getrusage(2), ru_maxrss)."""

    pid: int
    status: ExitStatus
    peak_memory: int


def dead_children() -> Iterator[Dead]:
    """Collect all children that have ended, strangers too: we are the subreaper, perhaps PID 1."""
    while True:
        try:
            pid, status, usage = os.wait3(os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        how = ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)
        yield Dead(pid, how, usage.ru_maxrss * 1024)


class Reaper:
    """Tells the shell's fleet of deaths.

    Attributes:
        leaving: fork servers that the fleet does not look after any more, by pid.
    """

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell
        self.leaving: dict[int, ForkServerHandle] = {}
        self._expected: dict[int, Callable[[ExitStatus], None]] = {}
        # The newest of those that nobody knew: a worker among them may be told of later.
        self._strangers: deque[Dead] = deque(maxlen=_STRANGERS)
        self._lost = Bucket(_LOST, _LOST_RATE, time.monotonic())

    def reap(self) -> None:
        for dead in dead_children():
            self._ended(dead)

    def _ended(self, dead: Dead) -> None:
        shell = self._shell
        launch = shell.launch_of.pop(dead.pid, None)
        if launch is not None:
            self.worker_ended(shell.workers[launch], dead.status, dead.peak_memory)
        elif (old := self.leaving.pop(dead.pid, None)) is not None:
            self._note_fork_server(old, dead, replaced=True)
            shell.left_over_ended(old)
        elif (callback := self._expected.pop(dead.pid, None)) is not None:
            callback(dead.status)
        else:
            self._strangers.append(dead)
            for handle in list(shell.fork_servers.values()):
                if handle.pid == dead.pid:
                    self._note_fork_server(handle, dead)
                    shell.fork_server_ended(handle, dead.status)

    def expect(self, pid: int, callback: Callable[[ExitStatus], None]) -> None:
        """Call back when a child ends that is neither a worker nor a fork server."""
        self._expected[pid] = callback

    def ended_before_known(self, handle: WorkerHandle) -> None:
        """A worker was dead before its fork server could tell us its pid."""
        found = [dead for dead in self._strangers if dead.pid == handle.pid]
        status, memory = (found[-1].status, found[-1].peak_memory) if found else (ExitStatus(), None)
        self.worker_ended(handle, status, memory)

    def worker_ended(self, handle: WorkerHandle, status: ExitStatus, peak_memory: int | None = None) -> None:
        """A worker is dead; its handle is given up."""
        shell = self._shell
        shell.hear_last_words(handle)
        worker = shell.fleet.workers.get(handle.launch)
        if worker is not None and worker.state is not WorkerState.STOPPING:
            self.report_lost(handle)
        dump = handle.take_dumps()
        if dump and status.signal is not None:
            fields = {"slot": handle.slot, "pid": handle.pid, "status": str(status), "stack": dump}
            name = "worker_aborted" if status.signal == signal.SIGABRT else "worker_crashed"
            shell.journal.record("error", name, fields)
        facts = ExitFacts(
            "worker",
            handle.pid or 0,
            handle.generation,
            status,
            time.monotonic() - handle.spawned_at,
            handle.slot,
            worker,
            sent=handle.sent,
            signalled=handle.signalled,
            requests=shell.scoreboard.counts(handle.cell).requests,
            last_requests=shell.scoreboard.last_requests(handle.cell),
            peak_memory=peak_memory,
            dump=dump or handle.last_dump,
        )
        end = shell.ledger.record(facts)
        shell.hooks.worker_ended(handle, status)
        shell.forget(handle.launch)
        shell.submit(
            events.WorkerExited(
                handle.launch,
                status,
                outsider=end.cause == "killed by an outsider",
                request=next(iter(end.last_requests), ""),
                traceback=end.stack,
            )
        )

    def _note_fork_server(self, handle: ForkServerHandle, dead: Dead, replaced: bool = False) -> None:
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
