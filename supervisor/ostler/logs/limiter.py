"""Bounds the log lines that clients can cause: the first ones of each kind, then only their number.

`LineLimiter` counts and reads no clock; `LimitedLog` writes, and any thread may call it.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ostler.osapi import original

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = TypeVar("Kind", bound=Hashable)

FIRST = 10
"""Lines of one kind that are written within a window."""
WINDOW_SECONDS = 60.0
KINDS = 64
"""Kinds that are counted one by one. Beyond them no line is written until a window ends."""


class LineLimiter(Generic[Kind]):
    """Counts lines by kind. A window begins with the first line of a kind and ends `seconds` later.

    Args:
        first: how many lines of one kind are written within a window.
        seconds: a window's length.
        kinds: how many kinds are counted at a time.
    """

    def __init__(self, first: int = FIRST, seconds: float = WINDOW_SECONDS, kinds: int = KINDS) -> None:
        self._first = first
        self._seconds = seconds
        self._kinds = kinds
        self._windows: dict[Kind, tuple[float, int]] = {}
        self._beyond = 0

    def admit(self, kind: Kind, now: float) -> bool:
        """Whether to write a line of `kind`; now: seconds of a monotonic clock."""
        if kind not in self._windows and len(self._windows) >= self._kinds:
            self._beyond += 1
            return False
        end, count = self._windows.get(kind, (now + self._seconds, 0))
        self._windows[kind] = end, count + 1
        return count < self._first

    def summaries(self, now: float) -> list[tuple[Kind | None, int]]:
        """Suppressed lines of the windows that have ended since the last call: kind and number of lines.

        The kind None stands for all kinds beyond those that are counted one by one.
        """
        ended = [kind for kind, (end, _) in self._windows.items() if end <= now]
        found: list[tuple[Kind | None, int]] = []
        for kind in ended:
            _, count = self._windows.pop(kind)
            if count > self._first:
                found.append((kind, count - self._first))
        if self._beyond and ended:
            found.append((None, self._beyond))
            self._beyond = 0
        return found


class LimitedLog:
    """Writes lines that clients can cause, and `log_suppressed` with the number of suppressed ones.

    Args:
        log: structlog's logger, or `worker_log.Log`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        log: Any,
        clock: "Callable[[], float]",
        limiter: "LineLimiter[tuple[str, str, str]] | None" = None,
    ) -> None:
        self._log = log
        self._clock = clock
        self._limiter: LineLimiter[tuple[str, str, str]] = LineLimiter() if limiter is None else limiter
        self._lock = original.Lock()

    def write(self, level: str, event: str, peer: str, /, **fields: Any) -> None:
        """Write a line unless `peer` has caused too many of this `event`."""
        with self._lock:
            admitted = self._limiter.admit((level, event, peer), self._clock())
        if admitted:
            getattr(self._log, level)(event, **fields)

    def report(self) -> None:
        """Write how many lines were suppressed; to be called about once a second."""
        with self._lock:
            suppressed = self._limiter.summaries(self._clock())
        for kind, lines in suppressed:
            level, event, peer = kind if kind is not None else ("warning", "several", "several")
            getattr(self._log, level)("log_suppressed", of=event, who=peer or None, lines=lines)
