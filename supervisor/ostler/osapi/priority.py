"""Scheduling priority: processes that load or tear down code must not delay those that serve requests.

Two means, each used where it is available:

- A short time slice. Since Linux 6.12 a normal process may ask for one (sched_setattr(2), sched_runtime). Its
  share of the CPU stays the same, but a process that wakes up meanwhile waits 0.1 ms and not some 3 ms.
- A lower priority. Every process may lower it, but raising it again needs CAP_SYS_NICE or RLIMIT_NICE
  (setpriority(2)), so it is lowered only if it can be raised again.

Whether a process has lowered its priority, and by how much, is remembered here; forked processes inherit that
with the priority. Called by the main thread.
"""

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A third of the weight of a normal process: with all CPUs busy a worker still boots in reasonable time.
_LOWER_BY = 5
_SHORT_SLICE = 100_000  # ns, the least the kernel allows
_CAP_SYS_NICE = 23  # linux/capability.h
# Numbers of sched_setattr(2), for which the C library has no function before glibc 2.41.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}

_is_lowered = False
_by = 0  # how much the nice value is above the usual one


class _SchedAttr(ctypes.Structure):
    """linux/sched/types.h, its first version: 48 bytes."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("sched_policy", ctypes.c_uint32),
        ("sched_flags", ctypes.c_uint64),
        ("sched_nice", ctypes.c_int32),
        ("sched_priority", ctypes.c_uint32),
        ("sched_runtime", ctypes.c_uint64),
        ("sched_deadline", ctypes.c_uint64),
        ("sched_period", ctypes.c_uint64),
    )


def was_lowered(by: int) -> None:
    """This process was started with a priority that `lower_priority` had lowered by so much."""
    global _is_lowered, _by
    _is_lowered, _by = True, by


def lower_priority() -> int:
    """Lower the priority; returns by how much the nice value was raised, for `was_lowered`."""
    global _is_lowered, _by
    if _is_lowered:
        return _by
    with suppress(OSError):  # a refusal (seccomp in a container) is no reason not to boot; here and below
        before = os.getpriority(os.PRIO_PROCESS, 0)
        if before + _LOWER_BY <= 19 and _may_return_to(before):
            os.setpriority(os.PRIO_PROCESS, 0, before + _LOWER_BY)
            _by = _LOWER_BY
    _set_slice(_SHORT_SLICE)
    _is_lowered = True
    return _by


def restore_priority() -> None:
    """Undo `lower_priority`, if it was called, and `was_lowered`."""
    global _is_lowered, _by
    if not _is_lowered:
        return
    if _by:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - _by)
        except OSError:
            pass  # refused in spite of the check; a slow worker is better than none
    _set_slice(0)
    _is_lowered, _by = False, 0


@contextmanager
def usual_priority() -> Iterator[None]:
    """For user code that starts processes: what it starts keeps its priority."""
    lowered = _is_lowered
    restore_priority()
    try:
        yield
    finally:
        if lowered:
            lower_priority()


def keep_way_forward() -> None:
    """Before privileges are given up: make sure that `restore_priority` will be possible afterwards.

    If that is not possible the nice value is the usual one from now on.
    """
    global _by
    if not _by:
        return
    try:
        nice = os.getpriority(os.PRIO_PROCESS, 0) - _by
    except OSError:
        _by = 0
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NICE)
    if soft == resource.RLIM_INFINITY or 20 - soft <= nice:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NICE, (20 - nice, max(hard, 20 - nice)))
    except (OSError, ValueError):  # no CAP_SYS_RESOURCE
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        _by = 0


def lower_priority_for_good() -> None:
    """Take the lowest priority for the rest of this process, which is about to end."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    _set_slice(_SHORT_SLICE)


def _set_slice(nanoseconds: int) -> None:
    """Ask for a time slice, 0 for the default; ignored by kernels and policies without that feature."""
    number = _SCHED_SETATTR.get(os.uname().machine)
    try:
        if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
            return
        nice = os.getpriority(os.PRIO_PROCESS, 0)
    except OSError:
        return
    attributes = _SchedAttr(
        size=ctypes.sizeof(_SchedAttr),
        sched_policy=os.SCHED_OTHER,
        sched_nice=nice,
        sched_runtime=nanoseconds,
    )
    ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0)


def _may_return_to(nice: int) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    if limit == resource.RLIM_INFINITY or 20 - limit <= nice:
        return True
    try:
        status = Path("/proc/self/status").read_text()
        # In a user namespace (user_namespaces(7)) the capability has no effect here.
        if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
            return False
    except OSError:
        return False
    capabilities = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(capabilities.split()[1], 16) >> _CAP_SYS_NICE & 1)
