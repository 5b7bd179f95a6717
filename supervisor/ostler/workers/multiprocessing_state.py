"""What `multiprocessing` remembers of this process's children, which a fork copies.

A worker is forked with `os.fork`, which does not reset the state of `multiprocessing`. So a worker would take
the fork server's children for its own: its end would terminate them, and fail at waiting for them. And
proxies of a `Manager` would send over their parent's connection. `forget_parents` does what `Process` itself
does in a child (`BaseProcess._bootstrap` in multiprocessing/process.py). Nothing is imported that the app has
not.
"""

import signal
import sys
from contextlib import suppress
from typing import Any


def forget_parents() -> None:
    """In a process that was just forked: its parent's children are not its own."""
    process: Any = sys.modules.get("multiprocessing.process")
    util: Any = sys.modules.get("multiprocessing.util")
    if process is not None:
        with suppress(AttributeError):
            process._children.clear()
    if util is not None:
        with suppress(AttributeError):
            util._finalizer_registry.clear()
            util._run_after_forkers()


def end_children(seconds: float) -> None:
    """End what this process has started by `multiprocessing`, as that would at the interpreter's end.

    It removes its temporary folders, too. Processes that are no daemons are not waited for but asked to end.
    After `seconds` this process is ended by SIGALRM, whatever it waits for.
    """
    process: Any = sys.modules.get("multiprocessing.process")
    util: Any = sys.modules.get("multiprocessing.util")
    if process is None or util is None:
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    with suppress(Exception):
        util._run_finalizers(0)  # managers and pools
        for child in process.active_children():
            child.terminate()
        util._exit_function()
    signal.setitimer(signal.ITIMER_REAL, 0)
