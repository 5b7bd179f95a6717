"""Requests that hang: their stacks go to the log, and an exception to their threads."""

from typing import TYPE_CHECKING

from supervisor.daemon.children import WorkerHandle, stack_of
from supervisor.fleet import actions
from supervisor.osapi.process import DUMP_SIGNAL

if TYPE_CHECKING:
    from supervisor.daemon.shell import Shell

# faulthandler writes a dump in many small pieces and does not say where it ends. The supervisor waits this
# long for all of it; meanwhile the successor boots.
_DUMP_TIME = 0.2
# How often a request is told to end.
_INTERRUPTS = 5


class Overdue:
    """What the shell does about requests over their time-out."""

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell

    def dump_stack(self, action: actions.DumpStack) -> None:
        handle = self._shell.workers[action.launch]
        found = self._shell.scoreboard.in_flight(handle.cell)
        ident = next((request.ident for request in found if request.thread == action.thread), 0)
        handle.read_dumps()
        handle.dumps.clear()
        handle.send_signal(DUMP_SIGNAL)
        self._shell.loop.call_later(_DUMP_TIME, self._report_overdue, handle, action, ident)

    def interrupt(self, action: actions.Interrupt) -> None:
        """End a request; which one of the thread's it is, the sensor has marked."""
        handle = self._shell.workers[action.launch]
        # After the dump: system calls that a thread waits in go on after faulthandler's handler, whatever
        # signals came within it.
        self._shell.loop.call_later(_DUMP_TIME, self._send_interrupt, handle, action.thread, _INTERRUPTS)

    def _send_interrupt(self, handle: WorkerHandle, thread: int, times: int) -> None:
        """Also more than once: one that comes just before a system call begins does not end it."""
        if handle.launch not in self._shell.workers:
            return
        if any(r.overdue and r.thread == thread for r in self._shell.scoreboard.in_flight(handle.cell)):
            handle.interrupt()
            if times > 1:
                self._shell.loop.call_later(_DUMP_TIME, self._send_interrupt, handle, thread, times - 1)

    def _report_overdue(self, handle: WorkerHandle, action: actions.DumpStack, ident: int) -> None:
        dump = handle.take_dumps() if handle.launch in self._shell.workers else ""
        fields = {
            "slot": handle.slot,
            "pid": handle.pid,
            "generation": handle.generation,
            "thread": action.thread + 1,
            "method": action.method,
            "path": action.path,
            "age": action.age,
            "stack": stack_of(dump, ident) if dump else "(the process did not answer: it is stopped)",
        }
        self._shell.journal.record("error", "request_overdue", fields)
