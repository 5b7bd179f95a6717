"""Functions of the standard library as they are before monkey-patching.

`gevent.monkey.patch_all()` and `eventlet.monkey_patch()` put cooperative versions into the standard library's
modules: in the fork server, by a configuration file or a preloaded app, or in a worker. With these, our code
would wait in a hub, even in signal handlers and in the hub itself, or would miss what was removed
(select.epoll). So code that runs in a process with user code takes these functions from here. This module is
imported before any user code is.

Only what is replaced is here. Methods of files and sockets are not, except those that make new sockets.
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

_fork = os.fork
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
ThreadLocal = threading.local
RLock = _thread.RLock  # threading.RLock is a function that gevent makes return another

_start = _thread.start_new_thread

_forking_thread = 0


def fork() -> int:
    """os.fork() for Ostler's own processes; raises OSError."""
    return forking(_fork)


def forking(fork: Callable[..., int], *arguments: object) -> int:
    """Call a function that forks one of Ostler's own processes; returns what it returns.

    Functions registered by `os.register_at_fork` can ask `is_forking` whether it is the app that forks.
    """
    global _forking_thread
    _forking_thread = get_ident()
    try:
        return fork(*arguments)
    finally:
        _forking_thread = 0


def is_forking() -> bool:
    """Whether the calling thread is in `fork` or `forking`."""
    return _forking_thread == get_ident()


class Socket(socket.socket):
    """A socket whose methods never wait for a hub; those of accepted sockets do not, either."""

    __slots__ = ()

    def accept(self) -> tuple["Socket", Any]:
        # Python's own accept() makes an object of what `socket.socket` is at that time.
        fd, peer = self._accept()  # type: ignore[attr-defined]
        return Socket(self.family, self.type, self.proto, fd), peer


def socketpair(family: int = socket.AF_UNIX, kind: int = socket.SOCK_STREAM) -> tuple[Socket, Socket]:
    one, other = _socket.socketpair(family, kind)  # as in `accept`
    return Socket(fileno=one.detach()), Socket(fileno=other.detach())


class NativeThread:
    """The part of threading.Thread that we use, where threading makes greenlets; always a daemon thread."""

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
    """A kernel thread, also where threading makes greenlets; not started yet."""
    if _thread.start_new_thread is _start:
        return threading.Thread(target=target, args=args, name=name, daemon=daemon)
    return NativeThread(target, args, name)
