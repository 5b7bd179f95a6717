"""Workers whose numbers in the scoreboard can't be true.

An app has damaged its worker's memory, or lies. Each such worker is one line in the log. Nothing that it says
counts from then on, its requests have no deadlines, and so it is replaced, as `POST /v1/workers/SLOT/recycle`
would do it: but not more than one in a while, for an app that does it all the time would else do nothing but
boot.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from supervisor.fleet import events
from supervisor.fleet.model import WorkerState

if TYPE_CHECKING:
    from supervisor.daemon.shell import Shell

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
        # Before that no further one is replaced.
        self._next = 0.0
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
        now = self._clock()
        wait = max(0.0, self._next - now)
        self._next = now + wait + _PAUSE
        self._shell.loop.call_later(wait, self._replace, handle.launch)

    def _replace(self, launch: int) -> None:
        fleet = self._shell.fleet
        worker = fleet.workers.get(launch)
        if worker is None or worker.leaving is not None:
            return
        # One that boots will be in trouble with its boot deadline, or not; one that leaves has one as well.
        if worker.state is WorkerState.READY and fleet.serving(worker.slot) is worker:
            self._shell.submit(events.RecycleAsked("scoreboard", worker.slot))
