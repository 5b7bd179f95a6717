"""Requests that hang: their stacks are logged, and an exception is raised in their threads or greenlets."""

import time

from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.children.ports import Ports
from ostler.daemon.children.stack_dumps import DUMP_TIME, StackDumps
from ostler.fleet import actions
from ostler.scoreboard.reader import Scoreboard
from ostler.token_bucket import TokenBucket

# How many lines are written about overdue requests at once, and a second in the long run, for all workers:
# each has a stack, and workers themselves report what is overdue.
_LINES, _LINES_RATE = 1000, 10
# How often a request is interrupted at most.
_INTERRUPTS = 5
# What to do about a request, by the setting that ends it.
_ADVICE = {
    "timeout": "raise timeout, or have the app ask for more time: "
    'environ["ostler.extend_deadline"](seconds), in ASGI scope["ostler.extend_deadline"](seconds)',
    "limit_request_time": "raise limit_request_time; neither progress nor ostler.extend_deadline gives more",
}


class OverdueRequests:
    """Performs what the fleet wants done about requests that have passed their deadline.

    Called only by the event loop's thread.
    """

    def __init__(self, ports: Ports, scoreboard: Scoreboard, stacks: StackDumps) -> None:
        self._ports = ports
        self._scoreboard = scoreboard
        self._stacks = stacks
        self._lines = TokenBucket(_LINES_RATE, _LINES, time.monotonic())
        self._left_out = 0

    def dump_stack(self, action: actions.DumpStack) -> None:
        """Log the request with the stack of its thread."""
        handle = self._ports.children.workers[action.worker_id]
        # The sensor has just read it, and there may be hundreds.
        found = self._scoreboard.last(handle.cell).in_flight
        ident = next((request.ident for request in found if request.thread == action.thread), 0)
        self._stacks.ask(handle, lambda dump: self._log_overdue(handle, action, ident, dump))

    def report_blocked(self, handle: WorkerHandle, seconds: float) -> None:
        """Log what blocks the event loop of a worker."""
        self._stacks.ask(handle, lambda dump: self._log_blocked(handle, seconds, dump))

    def interrupt(self, action: actions.Interrupt) -> None:
        """End a request. The sensor has marked which of the thread's requests it is."""
        handle = self._ports.children.workers[action.worker_id]
        # After the dump: a system call that a thread waits in continues after faulthandler's handler,
        # whatever signals came during it.
        self._ports.loop.call_later(DUMP_TIME, self._send_interrupt, handle, action.thread, _INTERRUPTS)

    def _send_interrupt(self, handle: WorkerHandle, thread: int, times: int) -> None:
        """More than once if need be: one that comes just before a system call begins does not end it."""
        if not self._ports.children.is_known(handle):
            return
        if self._scoreboard.is_overdue(handle.cell, thread):
            handle.interrupt()
            if times > 1:
                self._ports.loop.call_later(DUMP_TIME, self._send_interrupt, handle, thread, times - 1)

    def _log_overdue(self, handle: WorkerHandle, action: actions.DumpStack, ident: int, dump: str) -> None:
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
            "setting": action.setting,
            "limit": action.limit,
            "advice": _ADVICE[action.setting],
            "stack": self._stacks.stack_of(handle, dump, ident),
        }
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        self._ports.journal.record("error", "request_overdue", fields)

    def _log_blocked(self, handle: WorkerHandle, seconds: float, dump: str) -> None:
        if not self._ports.children.is_known(handle):
            return
        fields = {
            "slot": handle.slot,
            "pid": handle.pid,
            "generation": handle.generation,
            "seconds": round(seconds, 1),
            "stack": self._stacks.stack_of(handle, dump, 0),
        }
        self._ports.journal.record("warning", "loop_blocked", fields)
