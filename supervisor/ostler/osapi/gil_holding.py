"""System calls that keep the interpreter lock (GIL) while they run.

Python releases the lock around each system call. That is right for calls that wait. For a call that takes a
microsecond, in a process whose other threads wait for the lock, it means to queue for the lock again behind
all of them: some 10 µs of switching threads, or milliseconds when one of them computes. The calls here never
wait (recv(2) and send(2) with MSG_DONTWAIT, epoll_ctl(2), epoll_wait(2) with a time-out of 0), and
ctypes.PyDLL makes them without releasing the lock.

Each costs a microsecond more than Python's own, so they are for threads that would have to queue.
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


class GilHoldingCalls:
    """The calls. `recv` and `poll` use buffers of this object, so only one thread at a time may call them.

    All raise BlockingIOError and other OSErrors as Python's own do.

    Args:
        size: of the buffer that `recv` receives into, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = ctypes.create_string_buffer(size)
        self._address = ctypes.addressof(self._buffer)
        self._events = (_Event * _BATCH)()

    def poll(self, epoll_fd: int) -> list[tuple[int, int]]:
        """As `epoll.poll(0)`."""
        count = _epoll_wait(epoll_fd, self._events, _BATCH, 0)
        if count < 0:
            raise _error()
        return [(event.data & 0xFFFF_FFFF, event.events) for event in self._events[:count]]

    def recv(self, fd: int) -> bytes:
        """What has come, up to the buffer's size; b"" at the end."""
        count = _recv(fd, self._address, self._size, _DONTWAIT)
        if count < 0:
            raise _error()
        return ctypes.string_at(self._address, count)

    def send(self, fd: int, data: bytes) -> int:
        """Send what goes now; returns how many bytes that was."""
        count: int = _send(fd, data, len(data), _DONTWAIT | _NOSIGNAL)
        if count < 0:
            raise _error()
        return count

    def modify(self, epoll_fd: int, fd: int, mask: int) -> None:
        """As `epoll.modify(fd, mask)`."""
        if _epoll_ctl(epoll_fd, _EPOLL_CTL_MOD, fd, _Event(mask, fd)) < 0:
            raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    # OSError chooses its subclass by the number.
    return OSError(number, os.strerror(number))
