"""Unnamed files in memory."""

import errno
import os

_MFD_NOEXEC_SEAL = 0x0008  # linux/memfd.h, since Linux 6.3
_SHM = "/dev/shm"  # noqa: S108 - no name in it is used


def memory_file(name: str) -> int:
    """A new, empty file in memory; returns its descriptor (close-on-exec).

    It is a memfd that can be sealed (memfd_create(2)). Where that call is refused, as by a seccomp filter, it
    is an unnamed file in /dev/shm (open(2), O_TMPFILE), which can't be sealed.

    Args:
        name: what /proc/PID/maps shows for a memfd.

    Raises:
        OSError: both were refused. `strerror` has both calls and their reasons.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        # Required by the kernel with sysctl vm.memfd_noexec=2.
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        refused = error
    if refused.errno == errno.EINVAL:
        try:
            return os.memfd_create(name, flags)
        except OSError as error:
            refused = error
    try:
        return os.open(_SHM, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = f"memfd_create: {refused.strerror}; open of an unnamed file in {_SHM}: {error.strerror}"
        raise OSError(refused.errno, problem) from None
