"""Progress of a change, shown on stderr while `ctl` waits for it."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from ostler.cli.output import print_line
from ostler.control.views import ReloadView, WorkerView

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

_MOST = 1_000_000


class _Display:
    """A rich display on stderr. rich is imported only if something is displayed."""

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
    """The number within the limits of a progress bar: the daemon may have sent any number."""
    return max(-_MOST, min(number, _MOST))


class Step(NamedTuple):
    """How far the replacement of one worker has come."""

    old: int | None
    new: int | None
    state: str
    done: int
    """Of 3."""


def step(workers: list[WorkerView], generation: int, old: int | None) -> Step:
    """The step of a slot; `workers`: its workers now, `old`: the pid of its worker before the reload."""
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
        self._printed: set[int] = set()
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        if self._bars:
            from rich.progress import BarColumn, TextColumn

            title = TextColumn("{task.description}", markup=False)
            state = TextColumn("{task.fields[state]}", markup=False)
            progress = self._begin(title, BarColumn(), state)
            self._whole = progress.add_task("reload", total=None, state="")
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
            self._print_ended(steps)
        if self._progress is not None:
            self._draw(self._progress, reload, steps)

    def _print_ended(self, steps: dict[int, Step]) -> None:
        for slot, at in steps.items():
            if at.done == 3 and slot not in self._printed:
                self._printed.add(slot)
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
            state=replaced,
        )
        # If the fleet is larger than the terminal, only the workers that are being replaced right now.
        all_fit = len(steps) <= progress.console.height - 3
        for slot, at in steps.items():
            if slot not in self._tasks:
                self._tasks[slot] = progress.add_task("", total=3, state="")
            progress.update(
                self._tasks[slot],
                description=f"worker {slot}: {_pids(at)}",
                completed=at.done,
                state=at.state,
                visible=all_fit or at.done in (1, 2),
            )


def _pids(at: Step) -> str:
    old, new = ("-" if pid is None else str(pid) for pid in (at.old, at.new))
    return f"pid {old} -> {new}"
