"""Forking a process that is not this one's child, but the next subreaper's (prctl(2)): by forking twice.

The process in between ends at once. With the C extension no Python code runs in it, and the functions of
`os.register_at_fork` run once. Without it they run in the process in between, too: threads that they start
again run there for a moment.
"""

import errno
import os
import struct
from contextlib import suppress

from ostler import native
from ostler.osapi import original
from ostler.osapi.process_groups import lead_own_group

_PID = struct.Struct("i")


def fork_orphan(own_group: bool) -> int:
    """Fork; returns 0 in the new process, else its pid.

    own_group: the new process leads a process group of its own before its pid is known.

    Raises:
        OSError: the kernel refused a fork or a pipe.
    """
    if native.module is not None:
        return original.forking(native.module.fork_orphan, own_group)
    return _fork_twice(own_group)


def _fork_twice(own_group: bool) -> int:
    """`fork_orphan` without the C extension."""
    read_fd, write_fd = os.pipe()
    try:
        intermediate = original.fork()
        if intermediate == 0 and _fork_worker(write_fd, own_group) == 0:
            return 0
        original.close(write_fd)
        write_fd = -1
        answer = original.read(read_fd, _PID.size)
    finally:
        for fd in (read_fd, write_fd):
            if fd >= 0:
                original.close(fd)
    with suppress(ChildProcessError):  # user code ignores SIGCHLD, or has waited for it
        original.waitpid(intermediate, 0)
    # It writes nothing if it was killed, e.g. for want of memory.
    worker = _PID.unpack(answer)[0] if len(answer) == _PID.size else -errno.EAGAIN
    if worker < 0:
        raise OSError(-worker, os.strerror(-worker))
    return int(worker)


def _fork_worker(write_fd: int, own_group: bool) -> int:
    """In the process in between: write the worker's pid, or a negative errno, and end.

    Returns 0 in the worker.
    """
    try:
        worker = original.fork()
    except OSError as error:
        original.write(write_fd, _PID.pack(-(error.errno or errno.EAGAIN)))
        os._exit(1)
    if own_group:
        # By both: the supervisor looks at the group as soon as it knows the pid.
        lead_own_group(worker)
    if worker > 0:
        original.write(write_fd, _PID.pack(worker))
        os._exit(0)
    return 0
