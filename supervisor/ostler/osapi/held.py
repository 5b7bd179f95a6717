"""System calls during which this thread keeps the interpreter lock.

Python lets go of its lock around every system call. That is right for those that wait. For one that takes a
microsecond, in a process whose other threads want the lock, it means to queue up for it once more behind all
of them: some 10 µs of switching threads, or milliseconds when one of them computes. These calls never wait
(recv(2) and send(2) with MSG_DONTWAIT, epoll_ctl(2), epoll_wait(2) with a time-out of 0), and ctypes.PyDLL
makes them without letting go.

They cost a microsecond more than Python's own, so they are for threads that would have to queue.
"""

import ctypes
import os
import platform

_DONTWAIT, _NOSIGNAL = 0x40, 0x4000
_EPOLL_CTL_MOD = 3
_BATCH = 64


class _Event(ctypes.Structure):
    """struct epoll_event, which has no padding on x86-64 alone."""

    _layout_ = "ms"
    _pack_ = 1 if platform.machine() == "x86_64" else 0
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


_libc = ctypes.PyDLL(None, use_errno=True)
_recv = _libc.recv
_recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_recv.restype = ctypes.c_ssize_t
_send = _libc.send
_send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_send.restype = ctypes.c_ssize_t
_epoll_ctl = _libc.epoll_ctl
_epoll_ctl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Event))
_epoll_wait = _libc.epoll_wait
_epoll_wait.argtypes = (ctypes.c_int, ctypes.POINTER(_Event), ctypes.c_int, ctypes.c_int)


class Held:
    """The calls; receiving goes into one buffer of `size` bytes, so for one thread at a time.

    All raise BlockingIOError and other OSErrors as Python's own do.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = ctypes.create_string_buffer(size)
        self._address = ctypes.addressof(self._buffer)
        self._events = (_Event * _BATCH)()

    def poll(self, epoll_fd: int) -> list[tuple[int, int]]:
        """What epoll.poll(0) gives."""
        count = _epoll_wait(epoll_fd, self._events, _BATCH, 0)
        if count < 0:
            raise _error()
        return [(event.data & 0xFFFF_FFFF, event.events) for event in self._events[:count]]

    def recv(self, fd: int) -> bytes:
        count = _recv(fd, self._address, self._size, _DONTWAIT)
        if count < 0:
            raise _error()
        return ctypes.string_at(self._address, count)

    def send(self, fd: int, data: bytes) -> int:
        count: int = _send(fd, data, len(data), _DONTWAIT | _NOSIGNAL)
        if count < 0:
            raise _error()
        return count

    def modify(self, epoll_fd: int, fd: int, mask: int) -> None:
        if _epoll_ctl(epoll_fd, _EPOLL_CTL_MOD, fd, _Event(mask, fd)) < 0:
            raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    # OSError chooses its subclass by the number.
    return OSError(number, os.strerror(number))
