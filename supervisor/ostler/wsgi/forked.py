"""Whether this process is one that the app has forked from a worker, and how such a process ends.

It must not serve: the worker's connections and its cell of the scoreboard are not its own.
"""

import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from ostler import native

_forked = False


def note_fork() -> None:
    """Note that this process was forked by the app, so it is no worker."""
    global _forked
    _forked = True
    if native.module is not None:
        native.module.note_fork()


def is_forked() -> bool:
    """Whether this process was forked by the app, so it is no worker."""
    return _forked


def leave_answered(*_: object, **__: object) -> NoReturn:
    """End this process, instead of sending an answer: the app has returned in it as well as in its worker."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)


def leave(error: BaseException) -> NoReturn:
    """End this process because `error` has left the app in it, with the exit code of a Python program."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        traceback.print_exc()
        code = 1
    os._exit(code)
