"""Asking workers for their stacks.

faulthandler writes a dump in many small pieces and does not say where it ends; a worker whose requests are in
greenlets adds theirs. So there is one question to a worker at a time, and whoever asks meanwhile shares the
next one: when a database hangs, hundreds of requests are overdue at once.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ostler.daemon.children.handles import WorkerHandle, stack_of
from ostler.daemon.reporting.journal import shortened
from ostler.osapi.process import DUMP_SIGNAL

if TYPE_CHECKING:
    from ostler.daemon.shell import Shell

# How long (s) to wait for all of a dump.
DUMP_TIME = 0.2
# All of it is there when it is the same at two looks; on a busy machine that may take longer.
_LOOK = DUMP_TIME / 2
_LOOKS = 8

Then = Callable[[str], None]


class Stacks:
    """Collects dumps of workers."""

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell
        # By worker_id: who waits for the next dump; from a worker's first question to its last answer.
        self._next: dict[int, list[Then]] = {}

    def of(self, handle: WorkerHandle, dump: str, ident: int) -> str:
        """The part of a dump that is a thread's or a greenlet's, or what else can be said."""
        if not dump:
            return "(the process did not answer: it is stopped)"
        if f"0x{ident:016x}" not in dump and handle.worker_id in self._shell.workers:
            # A greenlet that C code keeps from telling where it is: what the main thread does says why.
            ident = self._shell.scoreboard.last(handle.cell).ident
        # All of a dump is much, and there may be many that are not found in it.
        return shortened(stack_of(dump, ident))

    def ask(self, handle: WorkerHandle, then: Then) -> None:
        """Call back with a dump that begins after now; with an empty one if the worker is gone or stopped."""
        waiting = self._next.get(handle.worker_id)
        if waiting is not None:
            waiting.append(then)
            return
        self._next[handle.worker_id] = [then]
        # Not at once: what else is found in the same look belongs to it.
        self._shell.loop.call_soon(self._dump, handle)

    def _dump(self, handle: WorkerHandle) -> None:
        asked, self._next[handle.worker_id] = self._next[handle.worker_id], []
        if handle.worker_id not in self._shell.workers:
            self._answer(handle, asked)
            return
        handle.drop_dumps()
        handle.send_signal(DUMP_SIGNAL)
        self._shell.loop.call_later(_LOOK, self._look, handle, asked)

    def _look(self, handle: WorkerHandle, asked: list[Then], looks: int = 1, seen: int = 0) -> None:
        """Answer if the dump is whole, or will not be soon. seen: its size at the last look."""
        if handle.worker_id in self._shell.workers and looks < _LOOKS:
            size = handle.whole_dumps()
            if not size or size != seen:
                self._shell.loop.call_later(_LOOK, self._look, handle, asked, looks + 1, size)
                return
        self._answer(handle, asked)

    def _answer(self, handle: WorkerHandle, asked: list[Then]) -> None:
        # One that has ended meanwhile was aborted, perhaps, with a dump that is younger than the question.
        dump = handle.take_dumps() if handle.worker_id in self._shell.workers else handle.last_dump
        for then in asked:
            then(dump)
        if self._next[handle.worker_id]:
            self._dump(handle)
        else:
            del self._next[handle.worker_id]
