"""Logs every line that the app executes (`spew`).

Code of the app is all code but the standard library, Ostler and installed packages; the app's own package is
included even if it is installed. CPython does not trace calls of a trace function, so the logging is not
traced.
"""

import linecache
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from ostler.logs.worker_log import Log
from ostler.settings.table import Settings
from ostler.settings.watched import is_installed
from ostler.workers.loaded_files import is_foreign

Trace = Callable[[FrameType, str, Any], "Trace | None"]


def spew(log: Log, settings: Settings) -> None:
    """Start, in this thread and in all threads that are started later."""
    trace = tracer(log, (settings.wsgi_app or "").partition(":")[0].partition(".")[0])
    threading.settrace(trace)
    sys.settrace(trace)


def tracer(log: Log, package: str) -> Trace:
    """A function for `sys.settrace`.

    Args:
        log: takes an event `line` with file, line, function and source.
        package: the app's, which may be installed.
    """
    names: dict[str, str | None] = {}

    def shown(path: str) -> str | None:
        """The name of a file in the log; None if it does not belong to the app."""
        parts = path.split("/")
        own = bool(package) and (package in parts or f"{package}.py" in parts)
        if path.startswith("<") or is_foreign(path) or (is_installed(path) and not own):
            return None
        try:
            return path.removeprefix(f"{os.getcwd()}/")  # noqa: PTH109
        except OSError:
            return path  # the working folder was removed

    def trace(frame: FrameType, event: str, _argument: Any) -> Trace | None:
        path = frame.f_code.co_filename
        try:
            name = names[path]
        except KeyError:
            name = names[path] = shown(path)
        if name is None:
            return None
        if event == "line":
            source = linecache.getline(path, frame.f_lineno).strip()
            function = frame.f_code.co_qualname
            log.info("line", file=name, line=frame.f_lineno, function=function, source=source)
        return trace

    return trace
