"""Refuses system calls to a daemon, as a container with a strict profile does: seccomp(2), in pure Python.

place.start(*words, popen={"preexec_fn": refusing("memfd_create")})

The filter also applies to all processes that the process starts.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Callable

from tests.kit.daemon import end_with_parent

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h for aarch64.
_NUMBERS = {
    "x86_64": {
        "sendfile": 40, "socketpair": 53, "flock": 73, "getpriority": 140, "setpriority": 141,
        "sched_setaffinity": 203, "sched_getaffinity": 204, "sched_getscheduler": 145, "prctl": 157,
        "sched_setattr": 314, "epoll_create1": 291, "eventfd2": 290, "pipe2": 293, "accept4": 288,
        "signalfd4": 289, "timerfd_create": 283, "memfd_create": 319, "pidfd_open": 434,
        "pidfd_send_signal": 424, "close_range": 436, "clone3": 435, "prlimit64": 302, "getrandom": 318,
        "sigaltstack": 131, "tgkill": 234, "statx": 332, "rseq": 334, "fchmod": 91, "fchown": 93,
        "setsid": 112, "copy_file_range": 326, "inotify_init1": 294, "waitid": 247, "setitimer": 38,
        "fcntl": 72, "ftruncate": 77, "listxattr": 194, "llistxattr": 195, "splice": 275, "preadv2": 327,
        "epoll_ctl": 233, "epoll_wait": 232, "clock_gettime": 228, "getsockname": 51, "getsockopt": 55,
    },
    "aarch64": {
        "sendfile": 71, "socketpair": 199, "flock": 32, "getpriority": 141, "setpriority": 140,
        "sched_setaffinity": 122, "sched_getaffinity": 123, "sched_getscheduler": 120, "prctl": 167,
        "sched_setattr": 274, "epoll_create1": 20, "eventfd2": 19, "pipe2": 59, "accept4": 242,
        "signalfd4": 74, "timerfd_create": 85, "memfd_create": 279, "pidfd_open": 434,
        "pidfd_send_signal": 424, "close_range": 436, "clone3": 435, "prlimit64": 261, "getrandom": 278,
        "sigaltstack": 132, "tgkill": 131, "statx": 291, "rseq": 293, "fchmod": 52, "fchown": 55,
        "setsid": 157, "copy_file_range": 285, "inotify_init1": 26, "waitid": 95, "setitimer": 103,
        "fcntl": 25, "ftruncate": 46, "listxattr": 11, "llistxattr": 12, "splice": 76, "preadv2": 286,
        # There is no epoll_wait(2): the C library calls epoll_pwait(2).
        "epoll_ctl": 21, "epoll_wait": 22, "clock_gettime": 113, "getsockname": 204, "getsockopt": 209,
    },
}  # fmt: skip
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
# struct seccomp_data: number, architecture, instruction pointer, six arguments of 64 bits.
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
_INSTRUCTION = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _program(call: str, number: int, argument: tuple[int, int] | None) -> bytes:
    """Refuses `call` with error `number`; `argument`: only if the one at this place has this value."""
    machine = platform.machine()
    wanted = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_EQUAL, 1, 0, _NUMBERS[machine][call]),
        (_RETURN, 0, 0, _ALLOW),
    ]
    if argument is not None:
        place, value = argument
        wanted += [
            (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * place),  # its lower half; both architectures are little-endian
            (_JUMP_EQUAL, 1, 0, value),
            (_RETURN, 0, 0, _ALLOW),
        ]
    wanted.append((_RETURN, 0, 0, _ERRNO | number))
    return b"".join(_INSTRUCTION.pack(*one) for one in wanted)


def refusing(
    *calls: str, number: int = errno.EPERM, argument: tuple[int, int] | None = None
) -> Callable[[], None]:
    """For Popen's `preexec_fn`: what is executed gets the error `number` from these system calls.

    Args:
        calls: their names.
        argument: refuse only calls whose argument at this place (from 0 on) has this value.
    """
    programs = [_program(call, number, argument) for call in calls]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    buffers = [ctypes.create_string_buffer(program, len(program)) for program in programs]
    filters = [
        _Program(len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
        for program, buffer in zip(programs, buffers, strict=True)
    ]

    def refuse() -> None:
        end_with_parent()
        _set(libc, _PR_SET_NO_NEW_PRIVS, 1)
        for one in filters:
            _set(libc, _PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(one))
        buffers.clear()  # the filter must exist until now

    return refuse


def _set(libc: ctypes.CDLL, option: int, *words: int) -> None:
    if libc.prctl(option, *words, *(0,) * (4 - len(words))) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@functools.cache
def can_refuse() -> bool:
    """Whether this machine and kernel support filters that this module can write."""
    if platform.machine() not in _NUMBERS:
        return False
    pid = os.fork()
    if pid == 0:
        try:
            refusing("flock")()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0
