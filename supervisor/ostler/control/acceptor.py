"""Accepts connections of the control plane without delaying the event loop."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable

from ostler.logs.limiter import LimitedLog

ACCEPTS_PER_PASS = 16
ACCEPT_PAUSE = 0.002
EXHAUSTED_PAUSE = 1.0
BACKLOG = 128

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ControlAcceptor:
    """Accepts the connections of a listening socket, with pauses for the other tasks of the loop.

    Args:
        sock: bound; the caller keeps its ownership.
        admit: takes an accepted socket.
        log: gets a limited number of warnings if accepting fails.
    """

    def __init__(self, sock: socket.socket, admit: Callable[[socket.socket], None], log: LimitedLog) -> None:
        self._sock = sock
        self._admit = admit
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._pause_timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Stop accepting. May be called twice."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        elif self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
        self._pause_timer = None

    def _accept(self) -> None:
        began = time.monotonic()
        for _ in range(ACCEPTS_PER_PASS):
            try:
                sock, _ = self._sock.accept()
            except ConnectionAbortedError:
                continue
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    problem = f"can't accept connections: {error.strerror}"
                    self._log.write("warning", "control_unavailable", "accept", problem=problem)
                self._pause(EXHAUSTED_PAUSE)
                return
            self._admit(sock)
        # There may be more connections. They get a third of the time at most.
        self._pause(max(ACCEPT_PAUSE, 2 * (time.monotonic() - began)))

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause_timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        self._loop.add_reader(self._sock, self._accept)
