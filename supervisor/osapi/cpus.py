"""How many CPUs this process may really use."""

import math
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def usable_cpus(cgroup_file: Path = Path("/proc/self/cgroup"), root: Path = _ROOT) -> int:
    """CPUs by affinity (sched_getaffinity(2)), cut by cgroup v2 `cpu.max` or v1 CFS quotas; at least 1."""
    affinity = len(os.sched_getaffinity(0))
    quotas = [quota for folder in _folders(cgroup_file, root) if (quota := _quota(folder)) is not None]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def _folders(cgroup_file: Path, root: Path) -> list[Path]:
    """The folders whose quota binds us: our cgroup and all above it."""
    try:
        lines = cgroup_file.read_text().splitlines()
    except OSError:
        return [root]
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = next((b for name in (controllers, "cpu") if (b := root / name).is_dir()), root / "cpu")
        else:
            continue
        # In a container the path may be the host's and not exist; its own root then has the quota.
        here = base / path.lstrip("/")
        folders += [folder for folder in (here, *here.parents) if folder.is_relative_to(base)]
    return folders


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
