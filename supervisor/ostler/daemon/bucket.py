"""A bound on how often something happens."""


class Bucket:
    """A token bucket: `most` at once, and `rate` a second in the long run.

    Times are CLOCK_MONOTONIC in seconds.
    """

    def __init__(self, most: float, rate: float, now: float) -> None:
        self._most = self._tokens = most
        self._rate = rate
        self._at = now

    def take(self, now: float) -> bool:
        """Whether it may happen now once more."""
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(now, self._at)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
