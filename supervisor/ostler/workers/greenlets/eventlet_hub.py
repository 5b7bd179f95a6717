"""eventlet's hub; importing this needs eventlet, and patches nothing."""

import os
import select
import warnings
from typing import Any

from greenlet import greenlet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is no longer developed: `check` says so
    import eventlet
    from eventlet import hubs

from ostler.osapi import original
from ostler.settings.table import Settings
from ostler.workers.greenlets.engine import GreenletEngine
from ostler.workers.greenlets.hubs import Callback, Hub
from ostler.wsgi.interruption import QuitWorker

_importer = os.getpid()
# Methods by which eventlet's hub reports exceptions.
_SQUELCHES = ("squelch_timer_exception", "squelch_exception", "squelch_generic_exception")


class EventletHub(Hub):
    """The hub of the calling thread."""

    # eventlet keeps the data of a greenlet (corolocal) until the greenlet ends, and offers no other way.
    reuses = False

    def __init__(self) -> None:
        super().__init__()
        self._hub = hubs.get_hub()
        if os.getpid() != _importer and isinstance(getattr(self._hub, "poll", None), original.epoll):
            self._renew_epoll()
        self._squelches = {name: getattr(self._hub, name) for name in _SQUELCHES}
        for name, squelch in self._squelches.items():
            setattr(self._hub, name, _without_quit(squelch))

    @property
    def greenlet(self) -> greenlet:
        return self._hub.greenlet  # it makes another if one dies

    def watch(self, fd: int, callback: Callback) -> Callback:
        hub = self._hub
        listener = hub.add(hub.READ, fd, lambda _fd: callback(), lambda _error: None, lambda: None)
        return lambda: hub.remove(listener)

    def every(self, seconds: float, callback: Callback) -> Callback:
        timer: Any = None

        def again() -> None:
            nonlocal timer
            timer = self._hub.schedule_call_global(seconds, again)
            callback()

        timer = self._hub.schedule_call_global(seconds, again)
        return lambda: timer.cancel()  # noqa: PLW0108 - the one that is running by then

    def soon(self, callback: Callback) -> None:
        self._hub.schedule_call_global(0, callback)

    def wait(self, fd: int, event: int, seconds: float | None) -> bool:
        write = bool(event & select.POLLOUT)
        try:
            hubs.trampoline(fd, read=not write, write=write, timeout=seconds, timeout_exc=TimeoutError)
        except TimeoutError:
            return False
        return True

    def descriptors(self) -> set[int]:
        epoll = getattr(self._hub, "poll", None)
        return {epoll.fileno()} if isinstance(epoll, original.epoll) else set()

    def close(self) -> None:
        for name, squelch in self._squelches.items():
            setattr(self._hub, name, squelch)

    def _renew_epoll(self) -> None:
        """A preloaded app may have made it, in the fork server: all workers would share it."""
        hub = self._hub
        hub.poll.close()
        hub.poll = original.epoll()
        for fd in {*hub.listeners[hub.READ], *hub.listeners[hub.WRITE]}:
            hub.register(fd, new=True)


class EventletWorker(GreenletEngine):
    """The worker class `eventlet`."""

    _ADVICE = (
        "worker_class: eventlet is no longer developed and its makers advise against new use; "
        "gevent does the same, and gthread needs neither"
    )

    @classmethod
    def check(cls, settings: Settings) -> list[str]:  # noqa: ARG003 - one signature for all
        return [cls._ADVICE]

    @staticmethod
    def patch() -> None:
        eventlet.monkey_patch()

    @classmethod
    def _make_hub(cls) -> Hub:
        return EventletHub()


def _without_quit(squelch: Any) -> Any:
    """A method that reports exceptions in greenlets, but not the one that ends the worker."""

    def report(*args: Any) -> None:
        if not issubclass(args[-1][0], QuitWorker):
            squelch(*args)

    return report
