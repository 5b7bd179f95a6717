"""Processes that the app forks from a worker or from the fork server, e.g. with multiprocessing.

A forked process inherits all descriptors. If it kept the listeners, clients would wait for a process that
serves no one, and the port would not be free when the daemon has ended; if it kept a client's connection,
the client would not notice that its worker was killed; and with a channel it could speak for its parent. So
in the child all of these are replaced by /dev/null: whatever refers to their numbers does no harm.

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
from collections.abc import Callable, Iterable

from ostler.osapi import original
from ostler.osapi.priority import restore_priority
from ostler.osapi.process import DUMP_SIGNAL
from ostler.wsgi.forked import note_fork

_package = __name__.partition(".")[0] + "."
_registered = False
_ALL = frozenset(int(signum) for signum in signal.valid_signals())
# The C function: `signal`'s own makes enums of all signals, which takes longer than the fork's bookkeeping.
_set_mask = _signal.pthread_sigmask
# What was blocked before the fork, by the thread that forks.
_masks: dict[int, set[int]] = {}


# What returns the descriptors that are not for children.
_private: list[Callable[[], Iterable[int]]] = []


# What else is done in children.
_callbacks: list[Callable[[], object]] = []


def call_in_children(callback: Callable[[], object]) -> None:
    """Call this in each child that the app forks; until `forget_private`."""
    _callbacks.append(callback)


def keep_private(descriptors: Callable[[], Iterable[int]]) -> None:
    """Children that the app forks get none of these. Called after each fork, by the thread that forks."""
    _private.append(descriptors)


def forget_private() -> None:
    """In a process of Ostler's that was just forked: it keeps what its parent kept from others."""
    _private.clear()
    _callbacks.clear()


def register() -> None:
    """From now on all children that the app forks lose our signal handlers and descriptors; theirs, too."""
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
    for callback in _callbacks:
        try:
            callback()
        except Exception:  # noqa: BLE001, S112 - the fork may have interrupted anything
            continue
    _callbacks.clear()
    _drop_private()
    restore_priority()
    try:
        reset_signals()
        if signal.SIGINT in signal.sigpending():
            # Python's handler would raise KeyboardInterrupt here, where the exception is lost.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    finally:
        if mask is not None:
            _set_mask(signal.SIG_SETMASK, mask)


def _drop_private() -> None:
    found: set[int] = set()
    for descriptors in _private:
        try:
            found.update(descriptors())
        except Exception:  # noqa: BLE001, S112 - the fork may have interrupted anything; the others are dropped
            continue
    _private.clear()
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        for fd in found:
            _close(fd)
        return
    for fd in found:
        if fd >= 0:
            try:
                os.dup2(null, fd, inheritable=False)
            except OSError:
                _close(fd)
    original.close(null)


def _close(fd: int) -> None:
    try:
        original.close(fd)
    except OSError:
        pass  # it was closed before


def reset_signals() -> None:
    """Replace Ostler's handlers by the defaults, and take away the descriptor for signal numbers."""
    signal.set_wakeup_fd(-1)
    faulthandler.unregister(DUMP_SIGNAL)
    for signum in signal.valid_signals():
        handler = signal.getsignal(signum)
        if callable(handler) and (getattr(handler, "__module__", None) or "").startswith(_package):
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
