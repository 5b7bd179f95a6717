"""Processes that are not our children: found in /proc, held by pidfds, stopped and killed."""

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.kit.waiting import PATIENCE, until


class Process:
    """A process that need not be our child, held by a pidfd: safe when the kernel uses its pid again."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1
        self._fd = os.pidfd_open(pid)

    def send(self, signum: int) -> None:
        signal.pidfd_send_signal(self._fd, signum)

    @property
    def gone(self) -> bool:
        return self.ended(0)

    def ended(self, within: float = PATIENCE) -> bool:
        """Wait for its end; returns whether it came in time (a pidfd is then readable, pidfd_open(2))."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close


def title(pid: int) -> str:
    """The title that ps shows; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """Children of all threads, zombies included."""
    return [found for found, stat in processes() if stat.parent == pid]


def zombies(pid: int) -> list[int]:
    return [found for found, stat in processes() if stat.parent == pid and stat.state == "Z"]


def descriptors(pid: int) -> list[str]:
    """What the process has open, e.g. `socket:[123]`, sorted."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return sorted(found)


def client_ports(pid: int, port: int) -> set[int]:
    """The clients' ports of the TCP connections to `port` that the process holds, idle ones included."""
    held = set(descriptors(pid))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        # proc_net(5) and the kernel's proc_net_tcp.rst: sl, local, remote, state, ..., and the tenth is the
        # socket's inode; addresses are in hexadecimal.
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in held:
            found.add(int(fields[2].rpartition(":")[2], 16))
    return found - {0}  # the listener itself


def freeze(process: Process) -> None:
    """Stop it with SIGSTOP, and wait until none of its threads runs: its descriptors stay as they are."""
    process.send(signal.SIGSTOP)
    until_stopped(process)


def until_stopped(process: Process) -> None:
    """Wait until none of its threads runs."""
    tasks = Path(f"/proc/{process.pid}/task")
    until(
        lambda: all("T" in (task / "stat").read_text().rpartition(")")[2][:3] for task in tasks.iterdir()),
        "stopped",
    )


class Killed(NamedTuple):
    """A process that a test killed, and the connections that it held."""

    pid: int
    at: float
    """CLOCK_MONOTONIC."""
    ports: frozenset[int]
    """The clients' ends of the connections that it held."""


def kill_holding(pid: int, port: int, signum: int = signal.SIGKILL) -> Killed | None:
    """Kill a worker and report which connections it held when it died; None if it had ended already.

    It is stopped first. Connections move between workers, so the worker that answered last on a connection
    need not be the one that held it.
    """
    try:
        process = Process(pid)
        freeze(process)
        ports = client_ports(pid, port)
        at = time.monotonic()
        process.send(signum)
        if signum != signal.SIGKILL:
            process.send(
                signal.SIGCONT
            )  # the other signal is pending in the stopped process, and is delivered first
    except (ProcessLookupError, FileNotFoundError):
        return None
    return Killed(pid, at, frozenset(ports))


class Stat(NamedTuple):
    state: str
    parent: int
    session: int
    started: int
    """Clock ticks since the machine's start."""


def processes() -> Iterable[tuple[int, Stat]]:
    """All processes of the machine, by pid."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            # proc_pid_stat(5): the command's name may contain anything, so parsing begins after its last
            # bracket.
            fields = stat.rpartition(")")[2].split()
            yield int(folder.name), Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))
