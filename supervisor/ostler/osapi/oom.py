"""Whether the kernel has killed a process because memory ran out.

A process that the kernel kills for memory looks like one that somebody sent SIGKILL to. What tells them apart
is a counter: `oom_kill` of our own cgroup, which the workers share (v2 `memory.events`, v1
`memory.oom_control`), or without one that of the whole machine (/proc/vmstat). It moves before the victim
ends.
"""

import time
from collections.abc import Callable
from pathlib import Path

from ostler.osapi.cgroup import MEMBERSHIP, ROOT, binding_folders, read_words

# What killed a process may take a while to be over: the victim has memory to give back. Kills that no death
# came to claim in this time hit somebody else.
_CLAIM_SECONDS = 10.0


class OomWatch:
    """Counts the kernel's kills.

    Args:
        membership, root, vmstat: where the kernel tells; others in tests.
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
        """Take note of kills; call it now and then, so that old ones are known to be old."""
        count = _read(self._counter)
        now = self._clock()
        if count is not None:
            # More than a few at once are as good as a few: each stands for one death to come.
            self._unclaimed += [now] * min(count - self._seen, 1024)
            self._seen = count
        self._unclaimed = [at for at in self._unclaimed if now - at < _CLAIM_SECONDS]

    def grew(self) -> bool:
        """Whether the kernel has killed lately; each kill explains one death."""
        self.look()
        if not self._unclaimed:
            return False
        self._unclaimed.pop(0)
        return True


def _read(file: Path) -> int | None:
    """The counter's value; None if it is not told there."""
    return read_words(file).get("oom_kill")
