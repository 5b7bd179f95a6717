"""How many CPUs this process may use, and how many of them are idle."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ostler.osapi.cgroup import MEMBERSHIP, ROOT, binding_folders, read_counters

STATISTICS = Path("/proc/stat")


def usable_cpus(membership: Path = MEMBERSHIP, root: Path = ROOT) -> int:
    """CPUs by affinity (sched_getaffinity(2)), cut by cgroup v2 `cpu.max` or v1 CFS quotas; at least 1."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except OSError:  # refused
        affinity = os.cpu_count() or 1
    folders = binding_folders("cpu", membership, root)
    quotas = [quota for folder in folders if (quota := _quota(folder)) is not None]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def _quota(folder: Path) -> float | None:
    """CPUs allowed by one cgroup, None for no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        v1_quota = int((folder / "cpu.cfs_quota_us").read_text())
        v1_period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return v1_quota / v1_period if v1_quota > 0 and v1_period > 0 else None


class IdleCpus:
    """Measures how many of the usable CPUs are idle, a quota of the cgroup included.

    Args:
        clock: CLOCK_MONOTONIC, seconds.
        statistics: proc_stat(5).
        membership, root: as for `usable_cpus`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        statistics: Path = STATISTICS,
        membership: Path = MEMBERSHIP,
        root: Path = ROOT,
    ) -> None:
        self._clock = clock
        self._statistics = statistics
        self._folders = binding_folders("cpu", membership, root)
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._before = self._look()

    def read(self) -> float:
        """How many were idle on average since the last call, or since this was made; 0 if it is not known."""
        before, self._before = self._before, self._look()
        seconds = self._before.at - before.at
        if seconds <= 0 or before.idle is None or self._before.idle is None:
            return 0.0
        found = [(self._before.idle - before.idle) / seconds]
        for folder, used in self._before.used.items():
            quota, used_before = _quota(folder), before.used.get(folder)
            if used is None or used_before is None or quota is None:
                return 0.0
            found.append(quota - (used - used_before) / seconds)
        return max(0.0, min(found))

    def _look(self) -> "_CpuTimes":
        limited = [folder for folder in self._folders if _quota(folder) is not None]
        return _CpuTimes(self._clock(), self._idle(), {folder: _used(folder) for folder in limited})

    def _idle(self) -> float | None:
        """Seconds that the CPUs of our affinity have been idle, waits for disks included."""
        try:
            mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            lines = [line.split() for line in self._statistics.read_text().splitlines()]
            return sum(int(line[4]) + int(line[5]) for line in lines if line[0] in mine) / self._ticks
        except (OSError, ValueError, IndexError):
            return None


class _CpuTimes(NamedTuple):
    """One look: when; seconds that CPUs were idle; seconds that limited cgroups have used, by folder."""

    at: float
    idle: float | None
    used: dict[Path, float | None]


def _used(folder: Path) -> float | None:
    """Seconds of CPU time that a cgroup has used."""
    used = read_counters(folder / "cpu.stat").get("usage_usec")
    if used is not None:
        return used / 1e6
    try:
        # v1, where the controller `cpuacct` is mounted together with `cpu`.
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    except (OSError, ValueError):
        return None
