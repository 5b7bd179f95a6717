"""Waiting for what `ctl` has asked for, and telling how far it is.

Polls the API's views; a condition is a function that says whether it is reached, or raises with the reason
why it never will be. Clocks are monotonic seconds.
"""

import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from supervisor.control.client import Client, UnreachableError
from supervisor.control.routes import RELOAD_STATUS, STATUS, WORKERS
from supervisor.control.views import ReloadView, StatusView, WorkerView
from supervisor.errors import OstlerError

if TYPE_CHECKING:
    from rich.progress import Progress

POLL_SECONDS = 0.03
FIRST_POLL_SECONDS = 0.004
"""Most changes take some milliseconds: the first looks are closer together, so the time told is true."""
DEGRADED_SECONDS = 3.0
"""A fleet whose workers fail to boot may recover; one that stays so long is not waited for."""

T = TypeVar("T")


class Meter:
    """A progress bar on stderr if that is a terminal, else nothing. rich is imported only for a bar."""

    def __init__(self, title: str, *, wanted: bool = True) -> None:
        self._title = title
        self._wanted = wanted and sys.stderr.isatty()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task(self._title, total=None)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, done: int, of: int, note: str = "") -> None:
        if self._progress is not None:
            title = f"{self._title} ({note})" if note else self._title
            self._progress.update(self._task, completed=max(0, min(done, of)), total=of, description=title)


class Patience:
    """How long to wait: a time-out, and less for a fleet that stays degraded."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end = clock() + seconds
        self._degraded_since: float | None = None
        self._health = ""

    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - self._clock())

    def look(self, status: StatusView) -> None:
        """Raises OstlerError if the fleet has been degraded for too long."""
        self._health = status.health
        if status.state != "degraded":
            self._degraded_since = None
            return
        now = self._clock()
        if self._degraded_since is None:
            self._degraded_since = now
        elif now - self._degraded_since >= DEGRADED_SECONDS:
            raise OstlerError(f"the fleet is degraded: {status.health} (see the daemon's log)")

    def until(self, condition: Callable[[], T | None]) -> T:
        """Poll until `condition` gives something. Raises OstlerError when the time is over."""
        pause = min(FIRST_POLL_SECONDS, POLL_SECONDS)
        while True:
            result = condition()
            if result is not None:
                return result
            if not self.left():
                health = f"; {self._health}" if self._health else ""
                raise OstlerError(f"not done after {self._seconds:g} s{health}")
            time.sleep(pause)
            pause = min(POLL_SECONDS, pause * 1.3)


def scaled(client: Client, wanted: int, meter: Meter, patience: Patience) -> StatusView:
    """Wait until exactly `wanted` workers exist and all are ready."""

    most = 0

    def condition() -> StatusView | None:
        nonlocal most
        status = client.call(STATUS)
        workers = client.call(WORKERS)
        most = max(most, len(workers))
        if status.wanted != wanted:
            raise OstlerError(f"somebody else has set the wanted number of workers to {status.wanted}")
        _refuse_stopping(status)
        # Steps to go up are workers that are ready, steps to go down those that have left.
        if status.ready < wanted:
            meter.show(status.ready, wanted)
        else:
            meter.show(most - len(workers), most - wanted)
        if status.ready == wanted == len(workers) and not status.booting and not status.draining:
            return status
        patience.look(status)
        return None

    return patience.until(condition)


def reloaded(client: Client, generation: int, meter: Meter, patience: Patience) -> ReloadView:
    """Wait until the reload to `generation` has ended, well or not."""

    def condition() -> ReloadView | None:
        newest = client.call(RELOAD_STATUS)
        meter.show(newest.replaced, newest.of, newest.phase)
        if newest.generation != generation or newest.phase in {"done", "failed", "superseded"}:
            return newest
        return None

    return patience.until(condition)


def recycled(client: Client, slot: int, old: int | None, meter: Meter, patience: Patience) -> WorkerView:
    """Wait until the process `old` is gone from `slot` and another is ready there."""

    def condition() -> WorkerView | None:
        workers = [worker for worker in client.call(WORKERS) if worker.slot == slot]
        status = client.call(STATUS)
        _refuse_stopping(status)
        gone = all(worker.pid != old for worker in workers)
        ready = next((w for w in workers if w.state == "ready" and w.pid not in (None, old)), None)
        meter.show((ready is not None) + gone, 2, "draining" if ready else "booting")
        if gone and ready is not None and len(workers) == 1:
            return ready
        patience.look(status)
        return None

    return patience.until(condition)


def stopped(client: Client, process: int | None, meter: Meter, patience: Patience) -> None:
    """Wait until nobody answers any more and the process (a pidfd, or None) has ended."""

    def condition() -> bool | None:
        try:
            status = client.call(STATUS)
        except UnreachableError:
            return True
        remaining = status.ready + status.booting + status.draining
        meter.show(max(0, status.wanted - remaining), status.wanted, f"{remaining} workers left")
        return None

    patience.until(condition)
    if process is not None:
        # poll, not select: a pidfd becomes readable when the process ends (pidfd_open(2)).
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(patience.left() * 1000):
            raise OstlerError("the control socket is closed but the daemon still runs")


def open_process(client: Client, pid: int) -> int | None:
    """A pidfd of the daemon, if it is a process that we can see and that is who it says; else None."""
    if client.server_pid() != pid:
        return None  # in another pid namespace, or over TCP
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _refuse_stopping(status: StatusView) -> None:
    if status.state == "stopping":
        raise OstlerError("the daemon is stopping")
