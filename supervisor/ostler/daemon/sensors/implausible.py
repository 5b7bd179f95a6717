"""Workers whose numbers in the scoreboard can't be true.

An app has damaged its worker's memory, or lies. Each such worker is one line in the log. Nothing that it says
counts from then on, its requests have no deadlines, and so it is replaced, as `POST /v1/workers/SLOT/recycle`
would do it: but not more than one in a while, for an app that does it all the time would else do nothing but
boot.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ostler.fleet import events
from ostler.fleet.model import WorkerState

if TYPE_CHECKING:
    from ostler.daemon.shell import Shell

# Seconds between two replacements.
_PAUSE = 60.0


class Doubts:
    """Hears of such workers.

    Args:
        shell: whose workers and scoreboard it is about.
        clock: CLOCK_MONOTONIC in seconds.
    """

    def __init__(self, shell: "Shell", clock: Callable[[], float] = time.monotonic) -> None:
        self._shell = shell
        self._clock = clock
        # Those that wait to be replaced, by worker id; and before when no further one is.
        self._due: list[int] = []
        self._next = 0.0
        self._waits = False
        shell.scoreboard.on_implausible = self.report

    def report(self, cell: int, problem: str) -> None:
        """Log it, and see to its replacement; once for each cell. May be called in the middle of anything."""
        handle = next((handle for handle in self._shell.workers.values() if handle.cell == cell), None)
        if handle is None:
            return
        fields = {
            "slot": handle.slot,
            "pid": handle.pid,
            "generation": handle.generation,
            "problem": problem,
        }
        self._shell.journal.record("warning", "scoreboard_implausible", fields)
        # Without those that are gone: an app can end such workers again and again.
        self._due = [worker_id for worker_id in self._due if worker_id in self._shell.workers]
        self._due.append(handle.worker_id)
        self._look_later()

    def _look_later(self) -> None:
        if self._due and not self._waits:
            self._waits = True
            self._shell.loop.call_later(max(0.0, self._next - self._clock()), self._look)

    def _look(self) -> None:
        """Replace the first of those that wait, if it is still there."""
        self._waits = False
        due, self._due = self._due, []
        for place, worker_id in enumerate(due):
            worker = self._shell.fleet.workers.get(worker_id)
            if worker is None or worker.leaving is not None:
                continue  # one that leaves has a deadline for that
            if worker.state is WorkerState.BOOTING:
                self._due.append(worker_id)
            elif worker.state is WorkerState.READY and self._shell.fleet.serving(worker.slot) is worker:
                self._due += due[place + 1 :]
                self._shell.submit(events.RecycleAsked("scoreboard", worker.slot))
                self._next = self._clock() + _PAUSE
                break
        else:
            # One that boots is looked at again, and not all the time.
            self._next = self._clock() + _PAUSE if self._due else self._next
        self._look_later()
