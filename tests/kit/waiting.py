"""Waiting for conditions: tests check a condition again and again up to a deadline and never sleep instead.

PATIENCE bounds what usually takes milliseconds. It is long because machines that run tests are slow and busy;
only a failure waits for all of it.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds."""
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.05


def until(condition: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
    """Call `condition` until it returns something true; return that.

    Args:
        what: describes the condition in the message of a failure.
        within: seconds.

    Raises:
        AssertionError: the condition did not become true in time.
    """
    began = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        waited = time.monotonic() - began
        assert waited < within, f"not within {within:g} s: {what}"
        # A call may also cost the daemon time, so calls become less frequent the longer the wait is.
        time.sleep(min(max(_FIRST_PAUSE, waited / 10), _LONGEST_PAUSE))
