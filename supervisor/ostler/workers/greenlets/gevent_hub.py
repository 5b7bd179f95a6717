"""gevent's hub; importing this needs gevent, and patches nothing."""

import select
from typing import Any

import gevent
from gevent import monkey
from gevent.socket import wait_read, wait_write

from ostler.workers.greenlets.engine import GreenletEngine
from ostler.workers.greenlets.hubs import Callback, Hub
from ostler.wsgi.interruption import QuitWorker

_READ = 1  # as in gevent's loop.io


class GeventHub(Hub):
    """The hub of the calling thread."""

    reuses = True

    def __init__(self) -> None:
        super().__init__()
        # A preloaded app may have made it, in the fork server.
        gevent.reinit()
        self._hub = self.greenlet = gevent.get_hub()
        self._loop = self._hub.loop
        self._handle_error = self._hub.handle_error
        self._hub.handle_error = self._on_error

    def watch(self, fd: int, callback: Callback) -> Callback:
        watcher = self._loop.io(fd, _READ)
        watcher.start(callback)
        return lambda: _end(watcher)

    def every(self, seconds: float, callback: Callback) -> Callback:
        timer = self._loop.timer(seconds, repeat=seconds)
        timer.start(callback)
        return lambda: _end(timer)

    def soon(self, callback: Callback) -> None:
        self._loop.run_callback(callback)

    def wait(self, fd: int, event: int, seconds: float | None) -> bool:
        wait = wait_write if event & select.POLLOUT else wait_read
        try:
            wait(fd, seconds, TimeoutError)
        except TimeoutError:
            return False
        return True

    def descriptors(self) -> set[int]:
        fd = self._loop.fileno()
        return set() if fd is None else {fd}

    def close(self) -> None:
        self._hub.handle_error = self._handle_error
        if self._hub._threadpool is not None:  # it is made when it is first looked at
            self._hub.threadpool.kill()

    def _on_error(self, context: Any, kind: Any, value: Any, trace: Any) -> None:
        # It was raised in a greenlet of the app's, or in the hub; the signal handler has called `stop`, too.
        if not (isinstance(kind, type) and issubclass(kind, QuitWorker)):
            self._handle_error(context, kind, value, trace)


class GeventWorker(GreenletEngine):
    """The worker class `gevent`."""

    @staticmethod
    def patch() -> None:
        monkey.patch_all()

    @classmethod
    def _make_hub(cls) -> Hub:
        return GeventHub()


def _end(watcher: Any) -> None:
    watcher.stop()
    watcher.close()
