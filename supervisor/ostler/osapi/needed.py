"""Tries the system calls that Ostler can't do without, before the start.

A strict seccomp(2) profile or a resource limit may refuse them. Otherwise the failure could occur in a
library, or in a worker that then boots and dies again and again; here it is one line with the name of the
call.
"""

import errno
import mmap
import os
import select
import socket
import time
from collections.abc import Callable

from ostler.errors import OstlerError
from ostler.osapi.files import most_open_files
from ostler.osapi.memfile import memory_file

# Enough to start with one worker.
_FEWEST_DESCRIPTORS = 32
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
# Variables that libraries read when they are imported.
_OF_LIBRARIES = ("SSLKEYLOGFILE", "OPENSSL_CONF")
LIMITS = "see the limits of the process (ulimit -a) and of its cgroup"


def look_at_variables() -> str:
    """Advice at the end of a message that a library can't be imported; empty if there is none."""
    named = [name for name in _OF_LIBRARIES if os.environ.get(name)]
    return f"; look at {' and '.join(named)}" if named else ""


def check_calls() -> None:
    """Try each call.

    Raises:
        OstlerError: one is refused; the message names it.
    """
    descriptors = most_open_files()
    if descriptors < _FEWEST_DESCRIPTORS:
        problem = f"this process may open {descriptors} files, and at least {_FEWEST_DESCRIPTORS} are needed"
        raise OstlerError(f"{problem}; raise RLIMIT_NOFILE (ulimit -n)")
    for name, attempt in _CALLS.items():
        try:
            attempt()
        except OSError as error:
            raise refused(name, error) from None


def refused(call: str, error: OSError) -> OstlerError:
    """The exception for a failed call that Ostler can't do without."""
    if error.errno in _REFUSED:
        return OstlerError(f"the system refuses {call}: {with_remedy(error)}")
    return OstlerError(f"{call} failed: {error.strerror or error}; {LIMITS}")


def with_remedy(error: OSError) -> str:
    """The text of an error, with a remedy if one is known."""
    what = error.strerror or str(error)
    if error.errno in _REFUSED:
        return f"{what}; allow it (in a container: its seccomp profile)"
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return f"{what}; {LIMITS}"
    return what


def _socketpair() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        for end in socket.socketpair(socket.AF_UNIX, kind):
            end.close()


def _pipe() -> None:
    for fd in os.pipe2(os.O_CLOEXEC):
        os.close(fd)


def _epoll_ctl() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        with select.epoll() as poll:
            poll.register(reader)
    finally:
        os.close(reader)
        os.close(writer)


def _epoll_wait() -> None:
    with select.epoll() as poll:
        poll.poll(0)


def _accept() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.accept()
        except OSError as error:
            if error.errno != errno.EINVAL:  # it does not listen
                raise


def _of_socket(use: Callable[[socket.socket], object]) -> Callable[[], None]:
    def attempt() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            use(sock)

    return attempt


def _waitid() -> None:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        pass


def _memory() -> None:
    fd = memory_file("ostler-check")
    try:
        os.ftruncate(fd, 4096)
        mmap.mmap(fd, 4096, mmap.MAP_SHARED).close()
    finally:
        os.close(fd)


_CALLS: dict[str, Callable[[], object]] = {
    "socketpair(2)": _socketpair,
    "pipe2(2)": _pipe,
    "epoll_create1(2)": lambda: select.epoll().close(),
    "epoll_ctl(2)": _epoll_ctl,
    "epoll_wait(2)": _epoll_wait,
    "clock_gettime(2)": lambda: (time.monotonic(), time.thread_time()),
    "accept4(2)": _accept,
    "getsockname(2)": _of_socket(lambda sock: sock.getsockname()),
    "getsockopt(2)": _of_socket(lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)),
    "ioctl(2)": _of_socket(lambda sock: sock.setblocking(False)),
    "waitid(2)": _waitid,
    "the calls for the scoreboard (memfd_create(2), ftruncate(2), mmap(2))": _memory,
}
