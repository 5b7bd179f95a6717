"""Pauses accepting when the process or the system is out of descriptors or memory.

Used when no connection could be evicted (see Acceptor.accept). A listener stays readable then, so that a loop
which goes on trying would spin and write a line each time.
"""

from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM

from ostler.logs.limiter import LimitedLog
from ostler.workers.units import SECOND

SECONDS = 1.0
"""How long a pause lasts."""
_NANOSECONDS = int(SECONDS * SECOND)
_EXHAUSTED = frozenset((EMFILE, ENFILE, ENOBUFS, ENOMEM))


def is_exhaustion(error: OSError) -> bool:
    """Whether accept(2) failed for lack of descriptors or memory, and not because a client has gone."""
    return error.errno in _EXHAUSTED


class AcceptPause:
    """The pause of one worker. Called only by the thread that accepts.

    Args:
        log: for `accept_paused`, an error.
    """

    def __init__(self, log: LimitedLog) -> None:
        self._log = log
        self._until: int | None = None

    def begin(self, error: OSError, now: int) -> None:
        """Pause for `SECONDS` from `now` (CLOCK_MONOTONIC, ns), and log why."""
        self._until = now + _NANOSECONDS
        self._log.write("error", "accept_paused", "", reason=error.strerror, seconds=int(SECONDS))

    def is_over(self, now: int) -> bool:
        """Whether accepting may be tried (again) at `now`."""
        if self._until is not None:
            if now < self._until:
                return False
            self._until = None
        return True
