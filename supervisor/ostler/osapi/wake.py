"""Waking a loop that waits in epoll_wait(2), from another thread or a signal handler."""

import os
from typing import Final

from ostler.osapi import original

_ONE: Final = (1).to_bytes(8, "little")


class Wake:
    """An eventfd(2), or a pipe where that is refused.

    Attributes:
        fd: readable once `send` was called, until `clear`.

    Raises:
        OSError: neither is to be had.
    """

    __slots__ = ("_sending", "fd")

    def __init__(self) -> None:
        try:
            self.fd = self._sending = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            self.fd, self._sending = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def send(self) -> None:
        """Any thread and any signal handler may call it."""
        try:
            original.write(self._sending, _ONE)
        except BlockingIOError:
            pass  # the pipe is full: it is readable

    def clear(self) -> None:
        """Be not readable any more."""
        try:
            original.read(self.fd, 65536)
        except BlockingIOError:
            pass  # another thread has read it

    def descriptors(self) -> set[int]:
        return {self.fd, self._sending}

    def close(self) -> None:
        for fd in self.descriptors():
            original.close(fd)
