"""Process groups (setpgid(2)): the kernel's own record of what a fork server or worker has started.

Each of them leads a group of its own. What it forks or executes is in that group, also after the one that
started it has ended, unless it leaves the group by setsid(2) or setpgid(2). As long as the group has a member
the kernel gives its number to no other process.

Members are found in /proc (proc_pid_stat(5)), which takes a look at every process of the machine, and are
signalled through pidfds. So a process that gets the pid of a member that has just ended is not signalled.
"""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ostler.osapi.process import send_signal

SESSION = 0
"""Stands for all groups of this process's session, where a function takes the number of a group."""


class Stat(NamedTuple):
    """What /proc says of a process."""

    state: str
    parent: int
    group: int
    session: int


def lead_own_group(pid: int) -> None:
    """Make a child that has not executed another program, or this process (0), the leader of a new group.

    Raises nothing: a child that is not in a group of its own is found to be so later.
    """
    try:
        os.setpgid(pid, 0)
    except OSError:
        pass  # it has ended, or leads a session and so a group already


def own_group(pid: int) -> int | None:
    """The group that a process leads (0: this one); None if it leads none, or there is no such process."""
    try:
        return pid if os.getpgid(pid) == (pid or os.getpid()) else None
    except OSError:
        return None


def end_own_group() -> None:
    """Send SIGTERM to the group that this process leads, if it does; to this process, too."""
    if own_group(0) is not None:
        with suppress(OSError):
            os.killpg(0, signal.SIGTERM)


def has_members(group: int) -> bool:
    """Whether there is a process in a group, zombies included. Takes one system call."""
    if group == SESSION:
        return True
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # none of them can be signalled, but they exist
    return True


def has_children(pid: int) -> bool:
    """Whether a process has children; False if that can't be known."""
    return any(stat.parent == pid and stat.state not in "ZX" for _, stat in _all())


def members(group: int, ancestor: int) -> list[int]:
    """The living processes of a group that descend from `ancestor`, which is not among them.

    group: its number, or SESSION for all groups of this process's session.
    """
    session = os.getsid(0)
    known = dict(_all())
    return [
        pid
        for pid, stat in known.items()
        if (stat.group == group or (group == SESSION and stat.session == session))
        and stat.state not in "ZX"
        and _descends(pid, ancestor, known)
    ]


def signal_members(group: int, ancestor: int, signum: int, besides: Collection[int]) -> list[int]:
    """Signal the processes that `members` finds, except `besides`; returns those that were signalled."""
    held: dict[int, int] = {}
    try:
        for pid in members(group, ancestor):
            if pid not in besides:
                with suppress(OSError):  # it has ended, or no descriptor is free
                    held[pid] = os.pidfd_open(pid)
        # What /proc says now is true of the process that the pidfd stands for, or that one has ended.
        still = set(members(group, ancestor)) if held else set()
        return [pid for pid, fd in held.items() if pid in still and _signal(fd, signum)]
    finally:
        for fd in held.values():
            os.close(fd)


def _signal(pidfd: int, signum: int) -> bool:
    try:
        return send_signal(pidfd, signum)
    except OSError:
        return False  # it runs with other rights


def _descends(pid: int, ancestor: int, known: dict[int, Stat]) -> bool:
    # Processes end while they are read, so that the chain may break, and pids may be used again, so that it
    # could be a ring.
    for _ in range(len(known)):
        stat = known.get(pid)
        if stat is None:
            return False
        if stat.parent == ancestor:
            return True
        pid = stat.parent
    return False


def _all() -> Iterator[tuple[int, Stat]]:
    """All processes that can be seen, by pid."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - thousands of Path objects would take longer than the rest
    except OSError:
        return
    for name in names:
        if name.isdecimal() and (stat := _stat(int(name))) is not None:
            yield int(name), stat


def _stat(pid: int) -> Stat | None:
    try:
        # The command's name may contain anything, so parsing begins after its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return Stat(fields[0].decode(), *map(int, fields[1:4]))
    except (OSError, IndexError, ValueError):
        return None
