"""Stack dumps of workers.

faulthandler writes a dump in many small pieces and does not mark its end; a worker whose requests are in
greenlets adds theirs. So only one dump of a worker is written at a time. Requests for a dump that come
meanwhile share the next one: when a database hangs, hundreds of requests are overdue at once.
"""

import functools
from collections.abc import Callable

from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.children.ports import Ports
from ostler.daemon.reporting.journal import shortened
from ostler.osapi.process import DUMP_SIGNAL
from ostler.scoreboard.reader import Scoreboard

DUMP_TIME = 0.2
"""Seconds to wait for all of a dump."""
# A dump is complete when it is the same at two looks; on a busy machine that may take longer.
_LOOK = DUMP_TIME / 2
_LOOKS = 8
# Seconds between two reads of what a worker writes unasked: it may write for ever.
_PAUSE = 0.05

Then = Callable[[str], None]


class StackDumps:
    """Reads the stack dumps of workers, and asks for them. Called only by the event loop's thread."""

    def __init__(self, ports: Ports, scoreboard: Scoreboard) -> None:
        self._ports = ports
        self._scoreboard = scoreboard
        # What waits for the next dump, by worker id; from a worker's first question to its last answer.
        self._waiting: dict[int, list[Then]] = {}

    # -- reading ----------------------------------------------------------------------------------------

    def watch(self, handle: WorkerHandle) -> None:
        """Read what the worker writes, so that its pipe does not fill."""
        self._ports.loop.add_reader(handle.stacks_fd, self._on_readable, handle)

    def unwatch(self, handle: WorkerHandle) -> None:
        """To be called before the pipe is closed."""
        self._ports.loop.remove_reader(handle.stacks_fd)

    def _on_readable(self, handle: WorkerHandle) -> None:
        self.unwatch(handle)
        if handle.read_dumps():
            self._ports.loop.call_later(_PAUSE, self._watch_again, handle)

    def _watch_again(self, handle: WorkerHandle) -> None:
        if self._ports.children.is_known(handle):
            self.watch(handle)

    # -- asking -----------------------------------------------------------------------------------------

    def ask(self, handle: WorkerHandle, then: Then) -> None:
        """Call `then` with a dump that begins after now; with an empty one if the worker has ended or does
        not run."""
        waiting = self._waiting.get(handle.worker_id)
        if waiting is not None:
            waiting.append(then)
            return
        self._waiting[handle.worker_id] = [then]
        # Not at once: what else is found in the same look at the scoreboard belongs to it.
        self._ports.loop.call_soon(self._dump, handle)

    def stack_of(self, handle: WorkerHandle, dump: str, ident: int) -> str:
        """The part of a dump that is a thread's or a greenlet's, or why there is none."""
        if not dump:
            return "(the process did not answer: it is stopped)"
        if f"0x{ident:016x}" not in dump and self._ports.children.is_known(handle):
            # A greenlet that does not run while C code does. What the main thread does says why.
            ident = self._scoreboard.last(handle.cell).ident
        # A whole dump is long, and there may be many requests that are not found in it.
        return shortened(stack_of(dump, ident))

    def _dump(self, handle: WorkerHandle) -> None:
        asked, self._waiting[handle.worker_id] = self._waiting[handle.worker_id], []
        if not self._ports.children.is_known(handle):
            self._answer(handle, asked)
            return
        handle.drop_dumps()
        handle.send_signal(DUMP_SIGNAL)
        self._ports.loop.call_later(_LOOK, self._look, handle, asked)

    def _look(self, handle: WorkerHandle, asked: list[Then], looks: int = 1, seen: int = 0) -> None:
        """Answer if the dump is complete, or has not become so in time. seen: its size at the last look."""
        if self._ports.children.is_known(handle) and looks < _LOOKS:
            size = handle.whole_dumps()
            if not size or size != seen:
                self._ports.loop.call_later(_LOOK, self._look, handle, asked, looks + 1, size)
                return
        self._answer(handle, asked)

    def _answer(self, handle: WorkerHandle, asked: list[Then]) -> None:
        # A worker that has ended meanwhile was perhaps aborted, with a dump that is newer than the question.
        alive = self._ports.children.is_known(handle)
        dump = handle.take_dumps() if alive else handle.record.last_dump
        for then in asked:
            then(dump)
        if self._waiting[handle.worker_id]:
            self._dump(handle)
        else:
            del self._waiting[handle.worker_id]


def stack_of(dump: str, ident: int) -> str:
    """One thread's part of a faulthandler dump; the whole dump if it is not in there."""
    wanted = f"0x{ident:016x}"
    # The newest dump is the last.
    return next(("\n".join(block) for block in reversed(_blocks(dump)) if wanted in block[0]), dump)


@functools.lru_cache(maxsize=1)  # hundreds of requests may be looked for in one dump
def _blocks(dump: str) -> list[list[str]]:
    """The lines of each thread."""
    blocks: list[list[str]] = []
    for line in dump.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            blocks.append([line])
        elif blocks and line.strip():
            blocks[-1].append(line)
    return blocks
