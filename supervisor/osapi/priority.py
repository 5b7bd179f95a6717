"""Booting must not make clients wait: who loads code steps back for who serves.

Lowering one's priority is free, raising it again needs CAP_SYS_NICE or RLIMIT_NICE (setpriority(2)), so it is
only lowered where it can be raised again.
"""

import os
import resource
from pathlib import Path

# Weighs a tenth of a normal process: enough to be preempted at once, and to go on when all CPUs are busy.
_LOWER_BY = 10
_CAP_SYS_NICE = 23  # linux/capability.h


def lower_priority() -> bool:
    """Step back; returns whether it was done, and `raise_priority` is owed."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if before + _LOWER_BY > 19 or not _may_return_to(before):
        return False
    os.setpriority(os.PRIO_PROCESS, 0, before + _LOWER_BY)
    return True


def raise_priority() -> None:
    """Undo `lower_priority`."""
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - _LOWER_BY)


def _may_return_to(nice: int) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    if limit == resource.RLIM_INFINITY or 20 - limit <= nice:
        return True
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    capabilities = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(capabilities.split()[1], 16) >> _CAP_SYS_NICE & 1)
