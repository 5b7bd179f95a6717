"""Decisions that are one function each."""

import math

# A slip of the finger must not fork a machine to death.
MAX_WORKERS = 512

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0


def backoff(failures: int) -> float:
    """Seconds to wait after the n-th failed boot in a row: doubles from half a second up to 30 seconds."""
    return float(min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(failures - 1, 10)))


def surge(number: int, share: float, wanted: int) -> int:
    """Processes that planned replacements may cost beyond the wanted number; always one at least."""
    return max(1, number, math.ceil(share * wanted - 1e-9))
