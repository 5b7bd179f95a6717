"""What `ctl` prints: tables for people (rich, loaded only for them), JSON for programs."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from supervisor.control.views import (
    ConfigView,
    EventView,
    ExitView,
    ReloadView,
    RequestView,
    StatusView,
    WorkerView,
)
from supervisor.control.wording import change, value

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

UNBOUNDED = 100_000
"""Columns of an output that is no terminal: nothing is cut off for a program that reads it."""

STATE_STYLES = {
    "ready": "green",
    "booting": "cyan",
    "starting": "cyan",
    "reloading": "cyan",
    "draining": "yellow",
    "paused": "yellow",
    "stopping": "yellow",
    "degraded": "red",
}


def print_json(data: object) -> None:
    """Print a view, or JSON that came from the API as bytes, with an indentation of two."""
    body = data if isinstance(data, bytes) else msgspec.json.encode(data)
    sys.stdout.write(msgspec.json.format(body, indent=2).decode() + "\n")


def print_line(text: str) -> None:
    sys.stdout.write(printable(text) + "\n")


def printable(text: str) -> str:
    """`text` without what would steer a terminal: paths come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """How long something took: `84 ms`, `1.24 s`, `2 min 5 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def age(seconds: float | None) -> str:
    """How old something is, short enough for a column: `0.3s`, `42s`, `5m03s`, `2h05m`, `3d04h`."""
    if seconds is None:
        return "-"
    sign, whole = ("-" if seconds < 0 else ""), int(abs(seconds))
    if whole < 10:
        return f"{seconds:.1f}s"
    if whole < 60:
        return f"{sign}{whole}s"
    if whole < 3600:
        return f"{sign}{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{sign}{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{sign}{whole // 86400}d{whole % 86400 // 3600:02d}h"


def size(count: int | None) -> str:
    """Bytes in binary units: `812 KiB`, `34.1 MiB`."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit != "MiB" else f"{amount:.1f} MiB"
        amount /= 1024
    return f"{amount:.2f} GiB"


def print_status(status: StatusView) -> None:
    threads = f"{status.threads} thread{'s' if status.threads != 1 else ''} a worker"
    totals = status.totals
    counts = f"{status.booting} booting, {status.draining} draining"
    if status.override is not None:
        counts += "; the number was set by hand"
    elif status.workers_range:
        counts += f"; the load decides on {status.workers_range[0]} to {status.workers_range[1]}"
    rows = [
        ("app", f"{status.app} ({status.worker_class}, {threads})"),
        ("state", f"{status.state}: {status.health}"),
        (
            "workers",
            f"{status.ready} ready of {status.wanted} wanted, {counts}",
        ),
        ("listeners", ", ".join(status.listeners) or "none"),
        ("supervisor", f"pid {status.pid}, up {age(status.uptime)}, generation {status.generation}"),
        ("requests", f"{totals.requests} answered, {totals.errors} errors, {status.in_flight} in flight"),
        ("processes", f"{totals.spawned} started, {totals.deaths} died unasked"),
        ("version", f"Ostler {status.version}, Python {status.python}{_upgraded(status)}"),
    ]
    if reload := status.reload:
        reason = f": {reload.reason}" if reload.reason else ""
        progress = f"{reload.replaced} of {reload.of} replaced, {duration(reload.seconds)}"
        rows.append(("reload", f"to generation {reload.generation} {reload.phase} ({progress}){reason}"))
    table = _grid()
    table.add_row("name", _cell(status.name, "bold"))
    for label, text in rows:
        table.add_row(label, _cell(text, STATE_STYLES.get(status.state, "") if label == "state" else ""))
    _console().print(table)


def print_workers(workers: Sequence[WorkerView]) -> None:
    table = _table(
        ("slot", "right"),
        ("pid", "right"),
        ("gen", "right"),
        ("state", "left"),
        ("age", "right"),
        ("requests", "right"),
        ("conns", "right"),
        ("in flight", "left"),
        ("cpu", "right"),
        ("rss", "right"),
        ("uss", "right"),
        ("deadline", "right"),
    )
    for worker in workers:
        state = f"{worker.state} ({worker.leaving})" if worker.leaving else worker.state
        table.add_row(
            str(worker.slot),
            "-" if worker.pid is None else str(worker.pid),
            str(worker.generation),
            _cell(state, STATE_STYLES.get(worker.state, "")),
            age(worker.age),
            str(worker.requests),
            str(worker.connections),
            _cell("\n".join(f"{r.method} {printable(r.path)} {age(r.age)}" for r in worker.in_flight)),
            "-" if worker.cpu_percent is None else f"{worker.cpu_percent:.0f}%",
            size(worker.rss),
            size(worker.uss),
            age(worker.deadline_in),
        )
    _console().print(table)


def print_requests(requests: Sequence[RequestView]) -> None:
    if not requests:
        print_line("no request is in flight")
        return
    table = _table(
        ("age", "right"),
        ("slot", "right"),
        ("pid", "right"),
        ("thread", "right"),
        ("method", "left"),
        ("path", "left"),
        ("deadline", "right"),
    )
    for r in requests:
        table.add_row(
            age(r.age),
            str(r.slot),
            str(r.pid),
            str(r.thread),
            _cell(printable(r.method)),
            _cell(printable(r.path)),
            age(r.deadline_in),
        )
    _console().print(table)


def print_config(config: ConfigView) -> None:
    table = _table(("setting", "left"), ("value", "left"), ("origin", "left"), ("takes effect", "left"))
    for setting in config.settings:
        shown = "-" if setting.value is None else printable(value(setting.value))
        table.add_row(_cell(setting.name), _cell(shown), _cell(setting.origin), setting.takes_effect)
    _console().print(table)


def print_exits(exits: Sequence[ExitView]) -> None:
    if not exits:
        print_line("no process has ended since the daemon's start")
        return
    table = _table(
        ("id", "right"),
        ("when", "left"),
        ("process", "left"),
        ("pid", "right"),
        ("age", "right"),
        ("cause", "left"),
        ("status", "left"),
        ("requests", "right"),
        ("peak memory", "right"),
        ("last request", "left"),
    )
    for view in exits:
        table.add_row(
            str(view.id),
            moment(view.at),
            _process(view),
            str(view.pid),
            age(view.age),
            _cell(view.cause, "" if view.planned else "red"),
            view.status,
            str(view.requests),
            size(view.peak_memory),
            _cell(printable(view.last_requests[0]) if view.last_requests else "-"),
        )
    _console().print(table)


def print_events(events: Sequence[EventView]) -> None:
    """A line each, as the log has them, then what takes lines of its own."""
    for event in events:
        fields = {name: printable(str(value)) for name, value in event.fields.items()}
        long = {name: str(value) for name, value in event.fields.items() if "\n" in str(value)}
        short = " ".join(f"{name}={value}" for name, value in fields.items() if name not in long)
        print_line(f"{moment(event.at)}  {event.name:<22} {short}".rstrip())
        for line in (line for text in long.values() for line in text.rstrip().splitlines()):
            print_line(f"    {printable(line)}")


def print_exit(view: ExitView) -> None:
    """One end, with all that is known."""
    grid = _grid()
    for label, text in (
        ("exit", str(view.id)),
        ("when", moment(view.at)),
        ("process", f"{_process(view)}, pid {view.pid}, generation {view.generation}"),
        ("cause", view.cause),
        ("status", view.status),
        ("age", age(view.age)),
        ("requests", str(view.requests)),
        ("peak memory", size(view.peak_memory)),
        ("last requests", "\n".join(map(printable, view.last_requests)) or "-"),
    ):
        grid.add_row(label, _cell(text, "red" if label == "cause" and not view.planned else ""))
    _console().print(grid)
    for line in (view.stack or "").splitlines():
        print_line(line)


def print_reload(reload: ReloadView, before: StatusView, after: StatusView) -> None:
    """How a reload went well, and what it has changed."""
    count = f"{reload.replaced} worker{'s' if reload.replaced != 1 else ''}"
    print_line(f"generation {reload.generation}: {count} replaced ({duration(reload.seconds)})")
    changes = "; ".join(map(change, reload.changes))
    print_line(f"changed: {changes}" if changes else "no setting changed")
    if after.override is not None:
        print_line(f"the number of workers that was set by hand stays: {after.override}")
    elif before.override is not None:
        print_line(
            f"the {before.override} workers set by hand gave way to the configuration's {after.wanted}"
        )


def moment(at: float) -> str:
    """Local time of day, with the date unless it is today's."""
    then = time.localtime(at)
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)


def _process(view: ExitView) -> str:
    return view.kind if view.slot is None else f"{view.kind} {view.slot}"


def _upgraded(status: StatusView) -> str:
    if status.program_since - status.started_at < 1.0:
        return ""
    return f", upgraded in place at {moment(status.program_since)}"


def _console() -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() else UNBOUNDED
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def _grid() -> "Table":
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _table(*columns: tuple[str, str]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in columns:
        # On a narrow terminal the free texts give way, the numbers never.
        free = name in {"in flight", "path", "value", "origin", "cause", "last request"}
        table.add_column(
            name,
            justify="right" if justify == "right" else "left",
            no_wrap=not free,
            overflow="fold",
        )
    return table


def _cell(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style=style)


def lines(items: Iterable[str]) -> str:
    return "".join(f"\n  {printable(item)}" for item in items)
