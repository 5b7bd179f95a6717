"""Requests that hang: their stacks go to the log, and an exception to their threads or greenlets."""

import time
from typing import TYPE_CHECKING

from ostler.daemon.bucket import Bucket
from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.children.stacks import DUMP_TIME, Stacks
from ostler.fleet import actions

if TYPE_CHECKING:
    from ostler.daemon.shell import Shell

# How many lines are written of overdue requests at once, and a second in the long run, for all workers: each
# has a stack, and what is overdue their workers say.
_LINES, _LINES_RATE = 1000, 10
# How often a request is told to end.
_INTERRUPTS = 5


class Overdue:
    """What the shell does about requests over their time-out."""

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell
        self._stacks = Stacks(shell)
        self._lines = Bucket(_LINES, _LINES_RATE, time.monotonic())
        self._left_out = 0

    def dump_stack(self, action: actions.DumpStack) -> None:
        handle = self._shell.workers[action.worker_id]
        # The sensor has just read it, and there may be hundreds.
        found = self._shell.scoreboard.last(handle.cell).in_flight
        ident = next((request.ident for request in found if request.thread == action.thread), 0)
        self._stacks.ask(handle, lambda dump: self._report_overdue(handle, action, ident, dump))

    def report_blocked(self, handle: WorkerHandle, seconds: float) -> None:
        """Tell what keeps a loop from all its requests."""
        self._stacks.ask(handle, lambda dump: self._report_blocked(handle, seconds, dump))

    def interrupt(self, action: actions.Interrupt) -> None:
        """End a request; which one of the thread's it is, the sensor has marked."""
        handle = self._shell.workers[action.worker_id]
        # After the dump: system calls that a thread waits in go on after faulthandler's handler, whatever
        # signals came within it.
        self._shell.loop.call_later(DUMP_TIME, self._send_interrupt, handle, action.thread, _INTERRUPTS)

    def _send_interrupt(self, handle: WorkerHandle, thread: int, times: int) -> None:
        """Also more than once: one that comes just before a system call begins does not end it."""
        if handle.worker_id not in self._shell.workers:
            return
        if self._shell.scoreboard.is_overdue(handle.cell, thread):
            handle.interrupt()
            if times > 1:
                self._shell.loop.call_later(DUMP_TIME, self._send_interrupt, handle, thread, times - 1)

    def _report_overdue(self, handle: WorkerHandle, action: actions.DumpStack, ident: int, dump: str) -> None:
        if not self._lines.take(time.monotonic()):
            self._left_out += 1  # the next line says so
            return
        fields = {
            "slot": handle.slot,
            "pid": handle.pid,
            "generation": handle.generation,
            "thread": action.thread + 1,
            "method": action.method,
            "path": action.path,
            "age": action.age,
            "stack": self._stacks.of(handle, dump, ident),
        }
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        self._shell.journal.record("error", "request_overdue", fields)

    def _report_blocked(self, handle: WorkerHandle, seconds: float, dump: str) -> None:
        if handle.worker_id not in self._shell.workers:
            return
        fields = {
            "slot": handle.slot,
            "pid": handle.pid,
            "generation": handle.generation,
            "seconds": round(seconds, 1),
            "stack": self._stacks.of(handle, dump, 0),
        }
        self._shell.journal.record("warning", "loop_blocked", fields)
