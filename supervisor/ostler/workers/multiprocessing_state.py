"""What `multiprocessing` remembers of this process's children, which a fork copies.

A worker is forked with `os.fork`, which does not reset the state of `multiprocessing`. So a worker would take
the fork server's children for its own: its end would terminate them, and fail at waiting for them. And
proxies of a `Manager` would send over their parent's connection. `forget_parents` does what `Process` itself
does in a child (`BaseProcess._bootstrap` in multiprocessing/process.py). Nothing is imported that the app has
not.

The start method "forkserver" has a server process, which `Process` in a forked child does not forget either:
before each start it waits for that process, which fails in all but its parent. So a worker forgets it, and
starts one of its own if it needs one. The resource tracker, in contrast, is shared by all descendants of the
process that started it, as `multiprocessing` shares it: only its pid is forgotten.
"""

import signal
import sys
from contextlib import suppress
from typing import Any

from ostler.osapi import original


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
    _forget_server(sys.modules.get("multiprocessing.forkserver"))
    _forget_tracker(sys.modules.get("multiprocessing.resource_tracker"))


def _forget_server(module: Any) -> None:
    """The server of the start method "forkserver"; it goes on for the process that started it."""
    with suppress(AttributeError):  # the module is not loaded, or is another in a later release
        server = module._forkserver
        alive_fd, preload = server._forkserver_alive_fd, server._preload_modules
        # In place: the module's functions are this object's methods.
        server.__init__()
        server._preload_modules = preload  # by set_forkserver_preload
        if alive_fd is not None:
            with suppress(OSError):
                original.close(alive_fd)  # the server ends when no process has it any more


def _forget_tracker(module: Any) -> None:
    """The process that removes what is left of semaphores and shared memory: it is another one's child."""
    with suppress(AttributeError):
        tracker = module._resource_tracker
        tracker._pid = None  # as in a child by "spawn": it uses the tracker, and never waits for it
        tracker._lock._at_fork_reinit()  # a thread that is not in this process may have held it


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
