"""How many CPUs this process may use."""

import math
import os
from pathlib import Path

from ostler.osapi.cgroup import MEMBERSHIP, ROOT, binding_folders


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
