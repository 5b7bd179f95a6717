"""Processor time and memory of one process.

psutil raises OSError itself where it is out of descriptors.
"""

import time
from contextlib import suppress

import psutil

# Reading USS walks a process's page tables: seconds between two readings.
_MEMORY_SECONDS = 1.0


class ProcessUsage:
    """CPU and memory of one process as psutil reports them.

    Attributes:
        cpu_percent: of one processor, in the last second; None if it is not known.
        rss, uss: bytes; None if they are not known.
    """

    def __init__(self, pid: int) -> None:
        self.cpu_percent: float | None = None
        self.rss: int | None = None
        self.uss: int | None = None
        self._read_at = 0.0
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
            # The first call only starts the measuring; until the second, the average since its start.
            self._process.cpu_percent()
            times, age = self._process.cpu_times(), time.time() - self._process.create_time()
            self.cpu_percent = round(100 * (times.user + times.system) / max(age, 0.01), 1)
        except (psutil.Error, OSError):
            self._process = None

    def read_cpu(self) -> None:
        """To be called once a second, so that the figure is the last second's."""
        if self._process is not None:
            try:
                self.cpu_percent = round(self._process.cpu_percent(), 1)
            except (psutil.Error, OSError):
                self._process = None

    def read_memory(self, now: float) -> None:
        """Read it unless that was done within the last second. now: CLOCK_MONOTONIC, seconds."""
        if self._process is None or now - self._read_at < _MEMORY_SECONDS:
            return
        self._read_at = now
        try:
            memory = self._process.memory_full_info()
        except psutil.AccessDenied:
            # It runs as another user, and the supervisor may not trace it (CAP_SYS_PTRACE).
            memory = None
        except (psutil.Error, OSError):
            self._process = None
            return
        if memory is None:
            with suppress(psutil.Error, OSError):
                self.rss = self._process.memory_info().rss or None
            return
        # A process that is just ending has no memory any more.
        self.rss, self.uss = memory.rss or None, memory.uss or None
