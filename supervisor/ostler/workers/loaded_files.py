"""Reports to the supervisor which files a process has loaded, so that a change reloads the app (`reload`).

Installed packages are among them, as in gunicorn; the standard library and Ostler itself are not. The
templates that an app will read are unknown; their usual folders follow from those of its own modules.
"""

import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import cache_from_source
from itertools import zip_longest
from typing import NamedTuple, TypeGuard

import ostler
from ostler.ipc import messages
from ostler.osapi import original
from ostler.settings.watched import is_installed
from ostler.text import frames_of
from ostler.workers.loader import attributes

# Characters of paths in one message, each up to four bytes there, and of one path (PATH_MAX).
_BATCH = 16 * 1024
_LONGEST = 4095
# Surrogates that stand for bytes occur in names (PEP 383), others can't.
_NOT_IN_PATHS = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
# Seconds between two checks of a worker for newly imported modules.
_INTERVAL = 1.0
_PACKAGE = f"{os.path.dirname(os.path.abspath(ostler.__file__))}/"  # noqa: PTH100, PTH120
_STANDARD = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")})


_CAUSES = [BaseException.__dict__[name].__get__ for name in ("__cause__", "__context__")]


class Sources(NamedTuple):
    """Files of modules, and folders that may contain templates; absolute paths."""

    files: list[str]
    folders: list[str]


def is_foreign(path: str) -> bool:
    """Whether a file belongs to the standard library or to Ostler."""
    return path.startswith(_PACKAGE) or (path.startswith(_STANDARD) and not is_installed(path))


def sources(modules: Iterable[tuple[str, object]]) -> Sources:
    """The files that modules were loaded from.

    Args:
        modules: names and modules, as in `sys.modules`.
    """
    files, folders = [], set()
    for name, module in modules:
        # Not getattr: it makes lazy modules import others.
        path = attributes(module).get("__file__")
        if type(name) is not str or not _is_path(path):
            continue
        path = os.path.abspath(path)  # noqa: PTH100 - a Path for each of thousands of files is slow
        if is_foreign(path):
            continue
        if path.endswith(".pyc"):
            path = path[:-1]
        files.append(path)
        if "." not in name and not is_installed(path):
            folder, file = os.path.split(path)
            if file == "__init__.py":
                folders.add(folder)
                folder = os.path.dirname(folder)  # noqa: PTH120
            folders.add(f"{folder}/templates")
    return Sources(files, sorted(folders))


def of_failure(error: BaseException) -> list[str]:
    """Files in the traceback of a failed import, including one that can't be parsed."""
    files: dict[str, None] = {}
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        waiting += [get(found) for get in _CAUSES]
        if isinstance(found, SyntaxError) and type(found.filename) is str:
            files[found.filename] = None
        if isinstance(found, ModuleNotFoundError) and type(found.name) is str:
            files.update(dict.fromkeys(_candidates(found.name)))
        trace = frames_of(found)
        while trace is not None:
            files[trace.tb_frame.f_code.co_filename] = None
            trace = trace.tb_next
    paths = [os.path.abspath(file) for file in files if _is_path(file)]  # noqa: PTH100
    return [path for path in paths if not is_foreign(path)]


def _is_path(path: object) -> TypeGuard[str]:
    """Whether it can be the path of a file: an app may set anything, and compiled text has a name in `<>`."""
    return (
        type(path) is str and 0 < len(path) <= _LONGEST and path[0] != "<" and not _NOT_IN_PATHS.search(path)
    )


def _candidates(name: str) -> list[str]:
    """Files that would contain a missing module."""
    parts = name.replace(".", "/")
    folders = [folder for folder in sys.path if os.path.isdir(folder)]  # noqa: PTH112
    return [f"{folder}/{parts}{end}" for folder in folders for end in (".py", "/__init__.py")]


def is_path(text: str) -> bool:
    """Whether a message can contain it."""
    return text.startswith("/") and _is_path(text)


def remove_bytecode(files: Iterable[str], since: float) -> None:
    """Remove the cached bytecode of files that were written in the second that `since` is in, or later.

    Bytecode is matched with its source by size and whole seconds (PEP 3147), so it would be used after
    another edit in the same second.
    """
    for path in files:
        if path.endswith(".py") and not is_installed(path):
            try:
                if os.stat(path).st_mtime >= int(since):  # noqa: PTH116
                    os.unlink(cache_from_source(path))  # noqa: PTH108
            except (OSError, NotImplementedError):
                continue  # there is none, or it belongs to another account


def _batches(paths: Iterable[str]) -> Iterator[list[str]]:
    """The paths in batches that fit a message."""
    batch: list[str] = []
    size = 0
    for path in paths:
        size += len(path)
        if batch and (size > _BATCH or len(batch) == messages.MOST_PATHS):
            yield batch
            batch, size = [], len(path)
        batch.append(path)
    if batch:
        yield batch


def _parted(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those that are there, and the others."""
    parts: tuple[list[str], list[str]] = ([], [])
    for file in files:
        parts[not os.path.exists(file)].append(file)  # noqa: PTH110
    return parts


class WatchReporter:
    """Reports which files this process has loaded, each file once.

    Args:
        send: sends a message; also called in a thread of this class.

    Attributes:
        reported: paths of files and folders.
    """

    def __init__(self, send: Callable[[messages.Watch], None]) -> None:
        self._send = send
        self.reported: set[str] = set()
        self._count = 0
        self._since = time.time()
        self._running = original.Lock()  # held while the thread runs

    def report(self, more: Iterable[str] = ()) -> None:
        """Report new files.

        Args:
            more: files that are no loaded modules.
        """
        since, self._since = self._since, time.time()
        modules = list(sys.modules.items())
        self._count = len(modules)
        found = sources(modules)
        folders = [folder for folder in found.folders if folder not in self.reported]
        files = [file for file in dict.fromkeys((*found.files, *more)) if file not in self.reported]
        files = list(filter(is_path, files))
        folders = list(filter(is_path, folders))
        self.reported.update(files, folders)
        remove_bytecode(files, since)
        there, missing = _parted(files)
        for some_files, some_folders in zip_longest(_batches(there), _batches(folders)):
            self._send(messages.Watch(some_files or [], some_folders or [], since))
        for some_files in _batches(missing):
            self._send(messages.Watch(some_files))

    def keep_reporting(self) -> None:
        """Report newly imported modules, in a thread, until `stop`. Raises RuntimeError without a thread."""
        self._running.acquire()
        original.thread(self._report_forever, "ostler-watched").start()

    def stop(self) -> None:
        self._running.release()

    def _report_forever(self) -> None:
        while not self._running.acquire(timeout=_INTERVAL):
            if len(sys.modules) == self._count:
                self._since = time.time()
            else:
                self.report()
