"""Waiting for the outcome of a request of `ctl`.

The functions poll the API's views. A condition is a function that returns None until it is met, then a
result. It raises OstlerError with the reason as soon as it can't be met any more. Clocks are monotonic
seconds.
"""

import os
import select
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

from ostler.cli.progress import Meter, Roll
from ostler.control.client import Client, RefusedError, UnreachableError
from ostler.control.routes import EVENTS, RELOAD_STATUS, STATUS, WORKERS
from ostler.control.views import EventView, ReloadPhase, ReloadView, StatusView, WorkerView
from ostler.errors import OstlerError

POLL_SECONDS = 0.03
FIRST_POLL_SECONDS = 0.004
"""Most changes take some milliseconds: shorter pauses at first make the time that is shown exact."""
DEGRADED_SECONDS = 3.0
"""A fleet whose workers fail to boot may recover; after this time degraded, waiting ends."""

_RELOAD_ENDS: dict[str, ReloadPhase] = {
    "reload_done": "done",
    "reload_failed": "failed",
    "reload_superseded": "superseded",
    "reload_rolled_back": "rolled back",
}

T = TypeVar("T")


class WaitLimit:
    """When waiting ends: at a time-out, or earlier if the fleet stays degraded."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end = clock() + seconds
        self._degraded_since: float | None = None
        self._health = ""

    def extend(self, seconds: float) -> None:
        """Wait longer."""
        self._seconds += seconds
        self._end += seconds

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
        """Poll until `condition` returns something. Raises OstlerError at the time-out."""
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


def scaled(client: Client, asked: int | None, meter: Meter, limit: WaitLimit) -> StatusView:
    """Wait until exactly as many workers exist as are wanted, and all are ready.

    Args:
        asked: the number that was set by hand; None: configuration and load decide on it, now and later.

    Raises:
        OstlerError: another command or a reload has decided otherwise meanwhile.
    """
    most = 0

    def condition() -> StatusView | None:
        nonlocal most
        status = client.call(STATUS)
        workers = client.call(WORKERS)
        most = max(most, len(workers))
        wanted = status.wanted
        _refuse_stopping(status)
        other = status.override is not None if asked is None else wanted != asked
        if other or status.state == "paused":
            raise OstlerError(_overtaken(status))
        # The steps of growing are workers that are ready, those of shrinking workers that have ended.
        if status.ready < wanted:
            meter.show(status.ready, wanted)
        else:
            meter.show(most - len(workers), most - wanted)
        if status.ready == wanted == len(workers) and not status.booting and not status.draining:
            return status
        limit.look(status)
        return None

    return limit.until(condition)


def paused(client: Client, meter: Meter, limit: WaitLimit) -> StatusView:
    """Wait until the fleet has no worker. Raises OstlerError if the pause has ended meanwhile."""
    most = 0

    def condition() -> StatusView | None:
        nonlocal most
        status = client.call(STATUS)
        left = len(client.call(WORKERS))
        most = max(most, left)
        _refuse_stopping(status)
        if status.wanted:
            raise OstlerError("another command has ended the pause")
        meter.show(most - left, most)
        return None if left else status

    return limit.until(condition)


def _overtaken(status: StatusView) -> str:
    """Why another number of workers is wanted than a command has asked for."""
    if status.state == "paused":
        return "the fleet was paused meanwhile"
    if status.override is not None:
        return f"another command has set the wanted number of workers to {status.override}"
    return f"the number of workers is the configuration's again, {status.wanted}: see `ctl events`"


def reloaded(client: Client, generation: int, roll: Roll, limit: WaitLimit) -> ReloadView:
    """Wait until the reload to `generation` has ended, well or not.

    A newer reload may have begun as soon as this one had ended: its end is looked for in the events then.
    Returns the newer one if there is no such event, because it took this one's place.
    """

    def condition() -> ReloadView | None:
        newest = client.call(RELOAD_STATUS)
        if newest.generation != generation:
            return _earlier(client, generation) or newest
        roll.show(newest, client.call(WORKERS))
        return newest if newest.phase in {"done", "failed", "superseded", "rolled back"} else None

    return limit.until(condition)


def probation_over(client: Client, generation: int, limit: WaitLimit) -> ReloadView:
    """Wait until a reload that has ended can't be rolled back by itself any more, or was."""

    def condition() -> ReloadView | None:
        newest = client.call(RELOAD_STATUS)
        if newest.generation != generation:
            return _earlier(client, generation) or newest
        return None if newest.on_probation else newest

    return limit.until(condition)


def _earlier(client: Client, generation: int) -> ReloadView | None:
    """The reload to `generation`, by the event of its end; None if it has none."""
    events = client.call(EVENTS)
    for event in reversed(events):
        fields = event.fields
        if event.name in _RELOAD_ENDS and fields.get("generation") == generation:
            workers, seconds = int(fields.get("workers", 0)), float(fields.get("seconds", 0.0))
            reason, traceback = fields.get("reason"), fields.get("traceback")
            phase = _RELOAD_ENDS[event.name]
            return ReloadView(generation, phase, workers, workers, seconds, "", reason, traceback)
    return None


def happened(client: Client, after: int, names: Collection[str], limit: WaitLimit) -> EventView:
    """Wait for the first event behind `after` that has one of the names."""

    def condition() -> EventView | None:
        nonlocal after
        for event in client.call(EVENTS, after=after):
            after = event.id
            if event.name in names:
                return event
        status = client.call(STATUS)
        _refuse_stopping(status)
        limit.look(status)
        return None

    return limit.until(condition)


def replaced(client: Client, old: Collection[int | None], meter: Meter, limit: WaitLimit) -> None:
    """Wait until none of these processes is a worker any more and all wanted workers are ready."""

    def condition() -> bool | None:
        workers, status = client.call(WORKERS), client.call(STATUS)
        _refuse_stopping(status)
        left = sum(worker.pid in old for worker in workers)
        meter.show(len(old) - left, len(old), "replacing")
        if not left and status.ready == status.wanted:
            return True
        limit.look(status)
        return None

    limit.until(condition)


def upgraded(
    client: Client, before: StatusView, after: int, process: int | None, limit: WaitLimit
) -> StatusView:
    """Wait until the new program answers in the place of the old one.

    Connections may break meanwhile, and answers may be late. Raises OstlerError if the upgrade has
    failed or the process (a pidfd, or None) has ended.
    """

    accepted = False

    def condition() -> StatusView | None:
        nonlocal after, accepted
        try:
            for event in client.call(EVENTS, after=after):
                after = event.id
                accepted = accepted or event.name == "upgrade"
                # With `by`: a request that was refused. If ours was accepted it is another command's.
                if event.name == "upgrade_failed" and not (accepted and "by" in event.fields):
                    problem = event.fields.get("problem", "see the daemon's log")
                    raise OstlerError(f"the upgrade failed, everything goes on as before: {problem}")
            status = client.call(STATUS)
        except UnreachableError:
            if process is not None and _ended(process, 0.0):
                raise OstlerError("the daemon has ended; see its log") from None
            return None
        _refuse_stopping(status)
        return status if status.program_since != before.program_since else None

    return limit.until(condition)


def reload_after(client: Client, generation: int, limit: WaitLimit) -> ReloadView:
    """Wait until a reload to a generation newer than this one has begun."""

    def condition() -> ReloadView | None:
        try:
            newest = client.call(RELOAD_STATUS)
        except RefusedError as error:
            if error.status != 404:
                raise
            return None
        return newest if newest.generation > generation else None

    return limit.until(condition)


def recycled(client: Client, slot: int, old: int | None, meter: Meter, limit: WaitLimit) -> WorkerView:
    """Wait until the process `old` is gone from `slot` and another is ready there.

    Raises:
        OstlerError: there will be none, because the fleet has fewer workers meanwhile.
    """

    def condition() -> WorkerView | None:
        workers = [worker for worker in client.call(WORKERS) if worker.slot == slot]
        status = client.call(STATUS)
        _refuse_stopping(status)
        if not workers and slot > status.wanted:
            raise OstlerError(f"worker {slot} has left and has no successor: {status.wanted} are wanted")
        gone = all(worker.pid != old for worker in workers)
        ready = next((w for w in workers if w.state == "ready" and w.pid not in (None, old)), None)
        meter.show((ready is not None) + gone, 2, "draining" if ready else "booting")
        if gone and ready is not None and len(workers) == 1:
            return ready
        limit.look(status)
        return None

    return limit.until(condition)


def stopped(client: Client, process: int | None, meter: Meter, limit: WaitLimit) -> None:
    """Wait until there is no answer any more and the process (a pidfd, or None) has ended."""

    def condition() -> bool | None:
        try:
            status = client.call(STATUS)
        except UnreachableError:
            return True
        remaining = status.ready + status.booting + status.draining
        meter.show(max(0, status.wanted - remaining), status.wanted, f"{remaining} workers left")
        return None

    limit.until(condition)
    if process is not None and not _ended(process, limit.left()):
        raise OstlerError("the control socket is closed but the daemon still runs")


def _ended(process: int, seconds: float) -> bool:
    """Whether a process (its pidfd) ends within so many seconds."""
    # poll, not select: a pidfd becomes readable when the process ends (pidfd_open(2)).
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def open_process(client: Client, pid: int) -> int | None:
    """A pidfd of the daemon, if it is visible to us and serves the socket; else None."""
    if client.server_pid() != pid:
        return None  # in another pid namespace, or over TCP
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def _refuse_stopping(status: StatusView) -> None:
    if status.state == "stopping":
        raise OstlerError("the daemon is stopping")
