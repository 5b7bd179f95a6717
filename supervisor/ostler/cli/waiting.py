"""Waiting for what `ctl` has asked for, and telling how far it is.

Polls the API's views; a condition is a function that says whether it is reached, or raises with the reason
why it never will be. Clocks are monotonic seconds.
"""

import os
import select
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from ostler.cli.output import print_line
from ostler.control.client import Client, RefusedError, UnreachableError
from ostler.control.routes import EVENTS, RELOAD_STATUS, STATUS, WORKERS
from ostler.control.views import EventView, ReloadView, StatusView, WorkerView
from ostler.errors import OstlerError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

POLL_SECONDS = 0.03
FIRST_POLL_SECONDS = 0.004
"""Most changes take some milliseconds: the first looks are closer together, so the time told is true."""
DEGRADED_SECONDS = 3.0
"""A fleet whose workers fail to boot may recover; one that stays so long is not waited for."""

_MOST = 1_000_000

T = TypeVar("T")


class _Display:
    """What is shown on stderr while something is waited for. rich is imported only if there is something."""

    _progress: "Progress | None" = None

    def _begin(self, *columns: "ProgressColumn") -> "Progress":
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        return self._progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


class Meter(_Display):
    """A progress bar on stderr if that is a terminal, else nothing."""

    def __init__(self, title: str, *, wanted: bool = True) -> None:
        self._title = title
        self._wanted = wanted and sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._wanted:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

            title = TextColumn("{task.description}", markup=False)
            progress = self._begin(title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._task = progress.add_task(self._title, total=None)
            progress.start()
        return self

    def show(self, done: int, of: int, note: str = "") -> None:
        if self._progress is not None:
            title = f"{self._title} ({note})" if note else self._title
            done, of = _bounded(done), _bounded(of)
            self._progress.update(self._task, completed=max(0, min(done, of)), total=of, description=title)


def _bounded(number: int) -> int:
    """A number that a bar can show, whatever the daemon says."""
    return max(-_MOST, min(number, _MOST))


class Step(NamedTuple):
    """How far the replacement of one worker is."""

    old: int | None
    new: int | None
    word: str
    done: int
    """Of 3."""


def step(workers: list[WorkerView], generation: int, old: int | None) -> Step:
    """The step that a slot is at; `workers`: those in it now, `old`: who was in it before the reload."""
    fresh = [worker for worker in workers if worker.generation >= generation]
    ready = next((worker.pid for worker in fresh if worker.state == "ready"), None)
    if ready is not None:
        return (
            Step(old, ready, "old one draining", 2)
            if len(fresh) < len(workers)
            else Step(old, ready, "replaced", 3)
        )
    if fresh:
        return Step(old, fresh[0].pid, "booting", 1)
    return Step(old, None, "waiting", 0)


class Roll(_Display):
    """A reload, worker by worker: a bar for each on stderr if that is a terminal, else a line at its end.

    Args:
        before: the workers that are to be replaced.
    """

    def __init__(self, before: list[WorkerView], *, wanted: bool = True) -> None:
        self._old: dict[int, int | None] = {}
        for worker in before:
            self._old.setdefault(worker.slot, worker.pid)
        self._plain = wanted and not sys.stderr.isatty()
        self._bars = wanted and not self._plain
        self._told: set[int] = set()
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        if self._bars:
            from rich.progress import BarColumn, TextColumn

            title = TextColumn("{task.description}", markup=False)
            word = TextColumn("{task.fields[word]}", markup=False)
            progress = self._begin(title, BarColumn(), word)
            self._whole = progress.add_task("reload", total=None, word="")
            progress.start()
        return self

    def show(self, reload: ReloadView, workers: list[WorkerView]) -> None:
        slots: dict[int, list[WorkerView]] = {}
        for worker in workers:
            slots.setdefault(worker.slot, []).append(worker)
        steps = {
            slot: step(found, reload.generation, self._old.get(slot)) for slot, found in sorted(slots.items())
        }
        if self._plain:
            self._tell(steps)
        if self._progress is not None:
            self._draw(self._progress, reload, steps)

    def _tell(self, steps: dict[int, Step]) -> None:
        for slot, at in steps.items():
            if at.done == 3 and slot not in self._told:
                self._told.add(slot)
                print_line(f"worker {slot}: {_pids(at)}")
                sys.stdout.flush()

    def _draw(self, progress: "Progress", reload: ReloadView, steps: dict[int, Step]) -> None:
        title = f"generation {reload.generation} ({reload.phase})"
        replaced = f"{reload.replaced} of {reload.of}"
        progress.update(
            self._whole,
            description=title,
            completed=_bounded(reload.replaced),
            total=_bounded(reload.of) or None,
            word=replaced,
        )
        # Of a fleet that is larger than the terminal, those that something happens to right now.
        roomy = len(steps) <= progress.console.height - 3
        for slot, at in steps.items():
            if slot not in self._tasks:
                self._tasks[slot] = progress.add_task("", total=3, word="")
            progress.update(
                self._tasks[slot],
                description=f"worker {slot}: {_pids(at)}",
                completed=at.done,
                word=at.word,
                visible=roomy or at.done in (1, 2),
            )


def _pids(at: Step) -> str:
    old, new = ("-" if pid is None else str(pid) for pid in (at.old, at.new))
    return f"pid {old} -> {new}"


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


def reloaded(client: Client, generation: int, roll: Roll, patience: Patience) -> ReloadView:
    """Wait until the reload to `generation` has ended, well or not."""

    def condition() -> ReloadView | None:
        newest = client.call(RELOAD_STATUS)
        if newest.generation != generation:
            return newest
        roll.show(newest, client.call(WORKERS))
        return newest if newest.phase in {"done", "failed", "superseded", "rolled back"} else None

    return patience.until(condition)


def happened(client: Client, after: int, names: Collection[str], patience: Patience) -> EventView:
    """Wait for the first event behind `after` that has one of the names."""

    def condition() -> EventView | None:
        nonlocal after
        for event in client.call(EVENTS, after=after):
            after = event.id
            if event.name in names:
                return event
        status = client.call(STATUS)
        _refuse_stopping(status)
        patience.look(status)
        return None

    return patience.until(condition)


def replaced(client: Client, old: Collection[int | None], meter: Meter, patience: Patience) -> None:
    """Wait until none of these processes is a worker any more and all wanted workers are ready."""

    def condition() -> bool | None:
        workers, status = client.call(WORKERS), client.call(STATUS)
        _refuse_stopping(status)
        left = sum(worker.pid in old for worker in workers)
        meter.show(len(old) - left, len(old), "replacing")
        if not left and status.ready == status.wanted:
            return True
        patience.look(status)
        return None

    patience.until(condition)


def upgraded(
    client: Client, before: StatusView, after: int, process: int | None, patience: Patience
) -> StatusView:
    """Wait until another program answers in the daemon's place.

    Connections may break meanwhile, and nobody may answer for a while. Raises OstlerError if the upgrade has
    failed or the process (a pidfd, or None) has ended.
    """

    accepted = False

    def condition() -> StatusView | None:
        nonlocal after, accepted
        try:
            for event in client.call(EVENTS, after=after):
                after = event.id
                accepted = accepted or event.name == "upgrade"
                # With who asked: a wish that was refused, which is another's if ours was accepted.
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

    return patience.until(condition)


def reload_after(client: Client, generation: int, patience: Patience) -> ReloadView:
    """Wait until a reload to a generation newer than this one has begun."""

    def condition() -> ReloadView | None:
        try:
            newest = client.call(RELOAD_STATUS)
        except RefusedError as error:
            if error.status != 404:
                raise
            return None
        return newest if newest.generation > generation else None

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
    if process is not None and not _ended(process, patience.left()):
        raise OstlerError("the control socket is closed but the daemon still runs")


def _ended(process: int, seconds: float) -> bool:
    """Whether a process (its pidfd) ends within so many seconds."""
    # poll, not select: a pidfd becomes readable when the process ends (pidfd_open(2)).
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


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
