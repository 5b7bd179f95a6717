"""The sensor for overdue requests: reads the scoreboard when a request may have passed its deadline.

It needs no polling. A request that starts after a look can't be overdue before `timeout` from then, and of
those in flight the oldest says when to look again.
"""

import asyncio
import time

from supervisor.daemon.shell import Shell
from supervisor.fleet import events
from supervisor.fleet.model import WorkerState

# While something is overdue: how often to look whether anything else is left in its worker.
_WATCH = 0.1
_LEAST = 0.01


class DeadlineSensor:
    """Turns overdue requests into events."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._reported: set[tuple[int, int, float]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def timeout(self) -> float:
        """Seconds a request may take, 0 for as long as it likes."""
        loaded = self._shell.loaded.get(self._shell.fleet.current)
        return loaded.settings.timeout if loaded else 0.0

    def start(self) -> None:
        """Begin to look; also when the time-out may have changed."""
        if self._timer is not None:
            self._timer.cancel()
        wait = 1.0
        try:
            wait = self._look()
        finally:
            self._timer = asyncio.get_running_loop().call_later(wait, self.start)

    def _look(self) -> float:
        """Report what is overdue; returns when to look again, in seconds."""
        timeout = self.timeout()
        if not timeout:
            return 1.0
        now = time.monotonic()
        wait = timeout
        live: set[tuple[int, int, float]] = set()
        for handle in list(self._shell.workers.values()):
            in_flight = self._shell.scoreboard.in_flight(handle.cell)
            overdue = 0
            for request in in_flight:
                left = request.started + timeout - now
                if left > 0:
                    wait = min(wait, left)
                    continue
                overdue += 1
                key = (handle.launch, request.thread, request.started)
                live.add(key)
                if key not in self._reported:
                    self._reported.add(key)
                    self._shell.submit(
                        events.RequestOverdue(
                            handle.launch, request.thread, request.method, request.path, now - request.started
                        )
                    )
            if overdue:
                wait = min(wait, _WATCH)
                if overdue == len(in_flight):
                    self._only_overdue_left(handle.launch, now)
        self._reported &= live
        return max(wait, _LEAST)

    def _only_overdue_left(self, launch: int, now: float) -> None:
        fleet = self._shell.fleet
        worker = fleet.workers.get(launch)
        if (
            worker is not None
            and worker.state is WorkerState.DRAINING
            and worker.overdue_since is not None
            and fleet.policy is not None
            and now >= worker.overdue_since + fleet.policy.timeout_grace
        ):
            self._shell.submit(events.OnlyOverdueLeft(launch))
