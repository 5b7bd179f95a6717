"""What selectors of the app wait for, where an app has taken a connection."""

import select

from ostler.osapi import original
from ostler.osapi.wake import Wake

# All that are open: of OwnDescriptors and Readinesses.
_open: set[int] = set()


def own_descriptors() -> list[int]:
    """The descriptors of this module's objects, in any state of their connections. Any thread may call it."""
    return list(_open)


class OwnDescriptor:
    """A descriptor that is closed with its last reference."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        _open.add(fd)

    def __del__(self) -> None:
        _open.discard(self.fd)
        original.close(self.fd)


class Readiness:
    """A descriptor that is readable while a socket is, or while bytes of it are buffered in the process.

    Under TLS, and while bytes that came with the request are left, the socket's own descriptor does not say
    whether `recv` would return at once. Selectors need one that does; it is never writable.
    """

    _buffered: Wake | None = None

    def __init__(self, fd: int) -> None:
        self._epoll = original.epoll()
        self._buffered = Wake()
        self._descriptors = {self._epoll.fileno(), *self._buffered.descriptors()}
        _open.update(self._descriptors)
        self._epoll.register(fd, select.EPOLLIN)
        self._epoll.register(self._buffered.fd, select.EPOLLIN)
        self._is_set = False

    def __del__(self) -> None:
        if self._buffered is not None:
            _open.difference_update(self._descriptors)
            self._buffered.close()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def set(self, buffered: bool) -> None:
        """Note whether bytes are buffered."""
        assert self._buffered is not None
        if buffered != self._is_set:
            self._is_set = buffered
            if buffered:
                self._buffered.send()
            else:
                self._buffered.clear()
