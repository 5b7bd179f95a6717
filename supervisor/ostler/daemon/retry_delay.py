"""When to try again what has failed."""

FIRST = 1.0
"""Seconds until the first try after a failure; twice as long after each further one in a row."""
LONGEST = 60.0
"""Seconds between two tries at most."""


class RetryDelay:
    """Counts failures in a row. Times are CLOCK_MONOTONIC in seconds."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._next = 0.0

    def failed(self, now: float) -> None:
        # 2.0 ** 1024 would overflow.
        self._next = now + min(LONGEST, FIRST * 2.0 ** min(self._in_a_row, 16))
        self._in_a_row += 1

    def succeeded(self) -> None:
        self._in_a_row = 0
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next try; 0.0: now."""
        return max(0.0, self._next - now)
