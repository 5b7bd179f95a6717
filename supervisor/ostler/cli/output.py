"""What `ctl` prints: tables for people (rich, loaded only for them), JSON for programs."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

import msgspec

from ostler.control.views import (
    ConfigView,
    EventView,
    ExitView,
    ReloadView,
    RequestView,
    StatusView,
    WorkerView,
)
from ostler.control.wording import change, value
from ostler.errors import OstlerError
from ostler.terminal import ascii_json, lines, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

UNBOUNDED = 100_000
"""Columns of an output that is no terminal: no line is broken for a program that reads it."""
LONGEST_ON_A_TERMINAL = 1_000
LONGEST = 5_000
"""Characters of one value, and more than a request line has. One of megabytes must not bury all other rows,
which a table makes as wide as the widest."""
LONGEST_TEXT = 200_000
"""The same for what has lines of its own, such as a traceback."""
_MOST_BYTES = 1 << 80

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
    """Print a view, or JSON that came from the API as bytes, with an indentation of two and in ASCII.

    Raises:
        OstlerError: the bytes are no JSON.
    """
    try:
        if isinstance(data, bytes):
            msgspec.json.decode(data)  # `format` lets through what is no UTF-8
            body = data
        else:
            body = msgspec.json.encode(data)
        text = msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OstlerError(f"the answer is not the JSON of Ostler's API: {error}") from error
    sys.stdout.write(ascii_json(text) + "\n")


def print_line(text: str) -> None:
    sys.stdout.write(one_line(text, _longest(sys.stdout)) + "\n")


def print_lines(text: str) -> None:
    """Print a text of several lines without the blanks at its end."""
    sys.stdout.write(lines(text.rstrip(), LONGEST_TEXT) + "\n")


def print_problem(text: str, *more: str) -> None:
    """Print a line to standard error; `more`: items that belong to it, on lines of their own."""
    longest = _longest(sys.stderr)
    sys.stderr.write(one_line(text, longest) + "\n" + "".join(f"  {one_line(m, longest)}\n" for m in more))


def show_traceback(text: str) -> None:
    """Print it to standard error."""
    sys.stderr.write(lines(text.rstrip("\n"), LONGEST_TEXT) + "\n")


def _longest(stream: TextIO) -> int:
    return LONGEST_ON_A_TERMINAL if stream.isatty() else LONGEST


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
    amount = float(min(count, _MOST_BYTES))
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
        ("requests", f"{totals.requests} answered, {totals.errors} errors, {_in_flight(status)}"),
        ("processes", f"{totals.spawned} started, {totals.deaths} died unasked"),
        ("version", f"Ostler {status.version}, Python {status.python}{_core(status)}{_upgraded(status)}"),
    ]
    if reload := status.reload:
        reason = f": {reload.reason}" if reload.reason else ""
        progress = f"{reload.replaced} of {reload.of} replaced, {duration(reload.seconds)}"
        rows.append(("reload", f"to generation {reload.generation} {reload.phase} ({progress}){reason}"))
    table = _grid()
    _add_row(table, "name", _cell(status.name, "bold"))
    for label, text in rows:
        style = STATE_STYLES.get(status.state, "") if label == "state" else ""
        _add_row(table, label, _cell(text, style))
    _console().print(table)


def _in_flight(status: StatusView) -> str:
    upgraded = f" ({status.upgraded} upgraded)" if status.upgraded else ""
    return f"{status.in_flight} in flight{upgraded}"


def _shown(request: RequestView) -> str:
    return f"{request.method} {request.path}{' upgraded' if request.upgraded else ''}"


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
        _add_row(
            table,
            str(worker.slot),
            "-" if worker.pid is None else str(worker.pid),
            str(worker.generation),
            _cell(state, STATE_STYLES.get(worker.state, "")),
            age(worker.age),
            str(worker.requests),
            str(worker.connections),
            # Websockets and their like stay for hours: they come last.
            _cells(f"{_shown(r)} {age(r.age)}" for r in sorted(worker.in_flight, key=lambda r: r.upgraded)),
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
        _add_row(
            table,
            age(r.age),
            str(r.slot),
            str(r.pid),
            str(r.thread),
            r.method,
            r.path,
            "upgraded" if r.upgraded else age(r.deadline_in),
        )
    _console().print(table)


def print_config(config: ConfigView) -> None:
    table = _table(("setting", "left"), ("value", "left"), ("origin", "left"), ("takes effect", "left"))
    for setting in config.settings:
        shown = "-" if setting.value is None else value(setting.value)
        _add_row(table, setting.name, shown, setting.origin, setting.takes_effect)
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
        _add_row(
            table,
            str(view.id),
            moment(view.at),
            _process(view),
            str(view.pid),
            age(view.age),
            _cell(view.cause, "" if view.planned else "red"),
            view.status,
            str(view.requests),
            size(view.peak_memory),
            view.last_requests[0] if view.last_requests else "-",
        )
    _console().print(table)


def print_events(events: Sequence[EventView]) -> None:
    """A line for each event, as in the log, followed by fields of several lines."""
    for event in events:
        fields = {name: str(value) for name, value in event.fields.items()}
        long = {name: value for name, value in fields.items() if "\n" in value}
        short = " ".join(f"{name}={value}" for name, value in fields.items() if name not in long)
        print_line(f"{moment(event.at)}  {event.name:<22} {short}".rstrip())
        for text in long.values():
            print_lines("    " + text.rstrip().replace("\n", "\n    "))


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
    ):
        _add_row(grid, label, _cell(text, "red" if label == "cause" and not view.planned else ""))
    _add_row(grid, "last requests", _cells(view.last_requests or ["-"]))
    _console().print(grid)
    if view.stack:
        print_lines(view.stack)


def print_reload(reload: ReloadView, before: StatusView, after: StatusView) -> None:
    """Print how a reload succeeded, and what it has changed."""
    count = f"{reload.replaced} worker{'s' if reload.replaced != 1 else ''}"
    print_line(f"generation {reload.generation}: {count} replaced ({duration(reload.seconds)})")
    changes = "; ".join(map(change, reload.changes))
    print_line(f"changed: {changes}" if changes else "no setting changed")
    if reload.environment:
        print_line(", ".join(map(change, reload.environment)))
    if after.override is not None:
        print_line(f"the number of workers that was set by hand stays: {after.override}")
    elif before.override is not None:
        print_line(f"the configuration's {after.wanted} workers replace the {before.override} set by hand")


def moment(at: float) -> str:
    """Local time of day, with the date unless it is today's."""
    try:
        then = time.localtime(at)
    except (OverflowError, OSError, ValueError):
        return "-"  # no such time
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)


def _process(view: ExitView) -> str:
    return view.kind if view.slot is None else f"{view.kind} {view.slot}"


def _core(status: StatusView) -> str:
    return {"c": ", requests in C", "python": ", requests in Python"}.get(status.core, "")


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
        # On a narrow terminal free texts are cut, numbers never.
        free = name in {"in flight", "path", "value", "origin", "cause", "last request"}
        table.add_column(
            name,
            justify="right" if justify == "right" else "left",
            no_wrap=not free,
            overflow="fold",
        )
    return table


def _add_row(table: "Table", *cells: "str | Text") -> None:
    """All rows are made here: no text comes into a table but through `_cell`."""
    table.add_row(*(_cell(cell) if isinstance(cell, str) else cell for cell in cells))


def _cell(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(one_line(text, _longest(sys.stdout)), style=style)


def _cells(texts: Iterable[str]) -> "Text":
    """A cell of several lines."""
    from rich.text import Text

    return Text("\n".join(one_line(text, _longest(sys.stdout)) for text in texts))
