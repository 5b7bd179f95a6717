"""Processes that the app forks from a worker or from the fork server, e.g. with multiprocessing.

A forked process inherits Python's signal handlers. Those of a worker must not run there: the handler for
SIGTERM would drain a worker that the process is not, so `Process.terminate()` would have no effect and
`join()` would wait for ever. Therefore the child gets the dispositions of an ordinary Python program.
Handlers that the app has installed stay.

Signals are blocked from before the fork until the child has its dispositions: one that is sent at once after
the fork takes effect then.
"""

import _signal  # type: ignore[import-not-found]
import faulthandler
import os
import signal

from ostler.osapi import original
from ostler.osapi.process import DUMP_SIGNAL
from ostler.wsgi.forked import note_fork

_package = __name__.partition(".")[0] + "."
_registered = False
_ALL = frozenset(int(signum) for signum in signal.valid_signals())
# The C function: `signal`'s own makes enums of all signals, which takes longer than the fork's bookkeeping.
_set_mask = _signal.pthread_sigmask
# What was blocked before the fork, by the thread that forks.
_masks: dict[int, set[int]] = {}


def register() -> None:
    """Reset signals in all children that the app forks from now on; children inherit this, too."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    if original.is_forking():
        return  # Ostler's own fork
    # The mask is stored before anything is blocked: a signal's handler may raise in each of these calls. One
    # that is stored already is right: it could not be restored after the fork before, for that reason.
    _masks.setdefault(original.get_ident(), _set_mask(signal.SIG_BLOCK, ()))
    _set_mask(signal.SIG_BLOCK, _ALL)


def _in_parent() -> None:
    try:
        _restore()
    except BaseException:
        _restore()
        raise


def _restore() -> None:
    thread = original.get_ident()
    if (mask := _masks.get(thread)) is not None:
        _set_mask(signal.SIG_SETMASK, mask)
        del _masks[thread]


def _in_child() -> None:
    mask = _masks.get(original.get_ident())
    _masks.clear()  # those of other threads are not in the child
    if original.is_forking():
        return  # a worker installs its handlers itself
    note_fork()
    try:
        reset_signals()
        if signal.SIGINT in signal.sigpending():
            # Python's handler would raise KeyboardInterrupt here, where the exception is lost.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    finally:
        if mask is not None:
            _set_mask(signal.SIG_SETMASK, mask)


def reset_signals() -> None:
    """Replace Ostler's handlers by the defaults, and take away the descriptor for signal numbers."""
    signal.set_wakeup_fd(-1)
    faulthandler.unregister(DUMP_SIGNAL)
    for signum in signal.valid_signals():
        handler = signal.getsignal(signum)
        if callable(handler) and (getattr(handler, "__module__", None) or "").startswith(_package):
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
