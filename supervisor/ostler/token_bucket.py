"""A token bucket: it bounds how often something happens, or how much of something is used."""


class TokenBucket:
    """So many tokens at once, and so many a second in the long run. It starts full.

    Reads no clock. Called by one thread at a time.

    Args:
        rate: tokens that it gets a second.
        burst: tokens that it holds at most.
        now: seconds, on any clock that does not go back; so are the others.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, tokens: float = 1) -> bool:
        """Take tokens, for something that can still be refused; False, and takes none, if there are fewer."""
        self._settle(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def use(self, tokens: float, now: float) -> None:
        """Take tokens for what was done already: their number may become negative, but not below -burst."""
        self._settle(now)
        self._tokens = max(self._tokens - tokens, -self._burst)

    def grant(self, tokens: float, most: float, now: float) -> None:
        """Add tokens, also beyond `burst` up to `most`; what is beyond `burst` does not expire."""
        self._settle(now)
        self._tokens = max(self._tokens, min(most, self._tokens + tokens))

    def wait(self, now: float) -> float:
        """Seconds until the number of tokens is not negative; 0.0 if it is not."""
        self._settle(now)
        return max(0.0, -self._tokens / self._rate)

    def is_full(self, now: float) -> bool:
        """Whether it holds `burst` tokens, like a new one."""
        self._settle(now)
        return self._tokens >= self._burst

    def _settle(self, now: float) -> None:
        filled = min(self._burst, self._tokens + self._rate * max(0.0, now - self._at))
        self._tokens = max(self._tokens, filled)
        self._at = max(now, self._at)
