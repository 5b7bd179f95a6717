"""Primitives as they are before an app may replace them.

`gevent.monkey.patch_all()` and `eventlet.monkey_patch()` put cooperative versions into the standard library's
modules, for whoever looks there: in the fork server, by a configuration file or a preloaded app, or in a
worker. Ours would then wait in a hub, in signal handlers and in the hub itself, or would miss what was taken
away (select.epoll). So what runs beside user code takes these from here. This module is imported before any
user code is.

Only what is replaced is here. Methods of files and of sockets are not, but for what makes new sockets.
"""

import _socket
import _thread
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

fork = os.fork
read = os.read
write = os.write
waitpid = os.waitpid
close = os.close
epoll = select.epoll
poll = select.poll
sleep = time.sleep
getaddrinfo = socket.getaddrinfo
get_ident = _thread.get_ident
Lock = threading.Lock
RLock = _thread.RLock  # threading.RLock is a function that gevent makes return another

_start = _thread.start_new_thread


class Socket(socket.socket):
    """A socket whose methods never wait for a hub, and neither do those that it accepts."""

    __slots__ = ()

    def accept(self) -> tuple["Socket", Any]:
        # Python's own makes what `socket.socket` is by now.
        fd, peer = self._accept()  # type: ignore[attr-defined]
        return Socket(self.family, self.type, self.proto, fd), peer


def socketpair(family: int = socket.AF_UNIX, kind: int = socket.SOCK_STREAM) -> tuple[Socket, Socket]:
    one, other = _socket.socketpair(family, kind)  # Python's own makes what `socket.socket` is by now
    return Socket(fileno=one.detach()), Socket(fileno=other.detach())


class NativeThread:
    """As much of threading.Thread as we use, where threading makes greenlets; always a daemon."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
        self.name = name
        self._target = target
        self._args = args
        self._running = Lock()

    def start(self) -> None:
        """Raises RuntimeError if no thread can be made."""
        self._running.acquire()
        try:
            _start(self._run, ())
        except RuntimeError:
            self._running.release()
            raise

    def join(self, timeout: float | None = None) -> None:
        if self._running.acquire(timeout=-1 if timeout is None else timeout):
            self._running.release()

    def is_alive(self) -> bool:
        return self._running.locked()

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._running.release()


def thread(
    target: Callable[..., object], name: str, args: tuple[Any, ...] = (), daemon: bool = True
) -> threading.Thread | NativeThread:
    """A thread of the kernel's, not started yet."""
    if _thread.start_new_thread is _start:
        return threading.Thread(target=target, args=args, name=name, daemon=daemon)
    return NativeThread(target, args, name)
