"""Workers whose numbers in the scoreboard can't be true.

The app has damaged its worker's memory, or writes false numbers. For each such worker one line is logged. Its
numbers are ignored from then on, so its requests have no deadlines. Therefore it is replaced, as
`POST /v1/workers/SLOT/recycle` would do it. There are `_PAUSE` seconds between two replacements, because the
workers of an app that does this all the time would otherwise do nothing but boot.
"""

import time
from collections.abc import Callable

from ostler.daemon.children.ports import Ports
from ostler.fleet import events
from ostler.fleet.model import WorkerState
from ostler.scoreboard.reader import Scoreboard

# Seconds between two replacements.
_PAUSE = 60.0


class ImplausibleWorkers:
    """Logs and replaces them. Called only by the event loop's thread.

    Args:
        ports, scoreboard: what it works with; the scoreboard calls `report` from now on.
        clock: CLOCK_MONOTONIC in seconds.
    """

    def __init__(
        self, ports: Ports, scoreboard: Scoreboard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ports = ports
        self._clock = clock
        # Worker ids of those that wait to be replaced, and the time before which no further one is.
        self._due: list[int] = []
        self._next = 0.0
        self._waits = False
        scoreboard.on_implausible = self.report

    def report(self, cell: int, problem: str) -> None:
        """Log it, and have it replaced; once for each cell. May be called while another event is handled."""
        handle = self._ports.children.worker_with_cell(cell)
        if handle is None:
            return
        fields = {
            "slot": handle.slot,
            "pid": handle.pid,
            "generation": handle.generation,
            "problem": problem,
        }
        self._ports.journal.record("warning", "scoreboard_implausible", fields)
        # Without those that have ended: an app can end such workers again and again.
        self._due = [worker_id for worker_id in self._due if worker_id in self._ports.children.workers]
        self._due.append(handle.worker_id)
        self._look_later()

    def _look_later(self) -> None:
        if self._due and not self._waits:
            self._waits = True
            self._ports.loop.call_later(max(0.0, self._next - self._clock()), self._look)

    def _look(self) -> None:
        """Replace the first of those that wait, if it has not ended."""
        self._waits = False
        state = self._ports.state()
        due, self._due = self._due, []
        for place, worker_id in enumerate(due):
            worker = state.workers.get(worker_id)
            if worker is None or worker.leaving is not None:
                continue  # one that must go has a deadline for that
            if worker.state is WorkerState.BOOTING:
                self._due.append(worker_id)
            elif worker.state is WorkerState.READY and state.serving(worker.slot) is worker:
                self._due += due[place + 1 :]
                self._ports.submit(events.RecycleAsked("scoreboard", worker.slot))
                self._next = self._clock() + _PAUSE
                break
        else:
            # One that boots is looked at again later.
            self._next = self._clock() + _PAUSE if self._due else self._next
        self._look_later()
