"""Reports which files the app writes itself, so that they do not reload it (`reload`).

Python calls an audit hook (PEP 578) before a file is opened, renamed or removed. The report is sent there: it
has been received by the supervisor's side of the channel before the file can have changed. A hook can't be
removed, so one hook per process calls what is there at the time, or nothing.

Processes that the app starts are not seen: neither programs, nor children that it forks, which have no
channel.
"""

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from ostler.settings.watched import fixed_part, is_template
from ostler.workers.loaded_files import is_path

# Files that one process reports at most: a child may not send any number of messages.
_MOST = 200
_WRITING = os.O_WRONLY | os.O_RDWR
# What SQLite adds to the name of a database.
_DATABASE = ("", "-journal", "-wal", "-shm")

_installed = False
_current: "WriteReporter | None" = None


class WriteReporter:
    """Reports each file once, before the app opens it to write, replaces it or removes it.

    Args:
        send: sends paths to the supervisor. Called in any thread, also in a signal handler.
        extra: `reload_extra_files`.
        loaded: paths of loaded files; others are added later.
    """

    def __init__(self, send: Callable[[list[str]], object], extra: Iterable[str], loaded: "set[str]") -> None:
        self._send = send
        self._loaded = loaded
        self._extra = tuple(map(fixed_part, extra))
        self._pid = os.getpid()
        self._reported: set[str] = set()

    def start(self) -> None:
        """Report from now on, in place of the reporter that this process may have inherited."""
        global _installed, _current
        _current = self
        if not _installed:
            _installed = True
            sys.addaudithook(_hook)

    def noticed(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Something is about to happen to files."""
        if os.getpid() != self._pid:
            return  # a child of the app
        for path in _PATHS[event](*arguments):
            name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if name:
                self._report(name)

    def _may_be_watched(self, path: str) -> bool:
        return (
            path.endswith(".py") or is_template(path) or path in self._loaded or path.startswith(self._extra)
        )

    def _report(self, path: str) -> None:
        # The file may be watched by either name.
        names = {os.path.abspath(path), os.path.realpath(path)}  # noqa: PTH100
        if not any(map(self._may_be_watched, names)):
            return
        for name in names - self._reported:
            if len(self._reported) < _MOST and is_path(name):
                self._reported.add(name)
                self._send([name])


def stop() -> None:
    """Report nothing more."""
    global _current
    _current = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    try:
        if event in _PATHS and _current is not None:
            _current.noticed(event, arguments)
    except Exception:  # noqa: BLE001, S110 - it must never make the app's call fail, also at the end of Python
        pass


def _opened(path: object, _mode: object, flags: int) -> tuple[object, ...]:
    return (path,) if flags & _WRITING else ()


def _both(source: object, target: object, *_folders: int) -> tuple[object, ...]:
    return source, target


def _target(_source: object, target: object, *_folders: int) -> tuple[object, ...]:
    return (target,)


def _first(path: object, *_others: object) -> tuple[object, ...]:
    return (path,)


def _database(path: object) -> tuple[object, ...]:
    return tuple(f"{path}{end}" for end in _DATABASE) if isinstance(path, str) else ()


# What is written, by the event that Python reports before ("Audit events table" of its documentation).
_PATHS: dict[str, Callable[..., tuple[object, ...]]] = {
    "open": _opened,
    "os.rename": _both,
    "os.remove": _first,
    "os.truncate": _first,
    "os.link": _target,
    "os.symlink": _target,
    "sqlite3.connect": _database,
}
