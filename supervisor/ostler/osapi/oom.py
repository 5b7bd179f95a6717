"""Detects that the kernel has killed a process because memory ran out.

A process that the kernel kills for memory ends like one that was sent SIGKILL. The difference is a counter:
`oom_kill` of our own cgroup, which the workers share (v2 `memory.events`, v1 `memory.oom_control`), or
without such a cgroup that of the whole machine (/proc/vmstat). It increases before the victim ends.
"""

import time
from collections.abc import Callable
from pathlib import Path

from ostler.osapi.cgroup import MEMBERSHIP, ROOT, binding_folders, read_counters

# Seconds from a kill to the end of the victim, which has to free its memory. A kill without a death of a
# child in this time hit another process.
_CLAIM_SECONDS = 10.0


class OomWatch:
    """Counts the kernel's kills.

    Args:
        membership, root, vmstat: the kernel's files; others in tests.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        membership: Path = MEMBERSHIP,
        root: Path = ROOT,
        vmstat: Path = Path("/proc/vmstat"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        folders = binding_folders("memory", membership, root)
        files = (folder / name for folder in folders for name in ("memory.events", "memory.oom_control"))
        self._counter = next((file for file in files if _read(file) is not None), vmstat)
        self._clock = clock
        self._seen = _read(self._counter) or 0
        self._unclaimed: list[float] = []

    def look(self) -> None:
        """Record new kills; call it about once a second, so that the age of kills is known."""
        count = _read(self._counter)
        now = self._clock()
        if count is not None:
            # Each stands for one death to come; the number is bounded.
            self._unclaimed += [now] * min(count - self._seen, 1024)
            self._seen = count
        self._unclaimed = [at for at in self._unclaimed if now - at < _CLAIM_SECONDS]

    def grew(self) -> bool:
        """Whether the kernel has killed recently; each kill accounts for one death."""
        self.look()
        if not self._unclaimed:
            return False
        self._unclaimed.pop(0)
        return True


def _read(file: Path) -> int | None:
    """The counter's value; None if the file does not have it."""
    return read_counters(file).get("oom_kill")
