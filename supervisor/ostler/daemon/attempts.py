"""Steps that do not depend on each other: one that raises is logged, and the others are done."""

import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from ostler.daemon.reporting.journal import Journal
from ostler.token_bucket import TokenBucket

Result = TypeVar("Result")

# Lines that are written at once, and a second in the long run: what fails once may fail with each event that
# a client or an app causes.
_LINES, _LINES_RATE = 100, 1


class Attempts:
    """Runs a step and logs what it raises as `internal_error`. Called only by the event loop's thread.

    Args:
        journal: for the errors.
        clock: CLOCK_MONOTONIC, seconds.
    """

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._lines = TokenBucket(_LINES_RATE, _LINES, clock())
        self._left_out = 0

    def __call__(self, what: str, step: Callable[[], Result]) -> Result | None:
        """Returns what `step` returns, or None if it has raised. what: names it in the log."""
        try:
            return step()
        except Exception:  # noqa: BLE001 - whatever it is, the other steps must be done
            self.failed(f"failed: {what}")
            return None

    def failed(self, problem: str) -> None:
        """Log the exception that is being handled."""
        if not self._lines.take(self._clock()):
            self._left_out += 1  # the next line says so
            return
        fields: dict[str, object] = {"problem": problem, "traceback": traceback.format_exc()}
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        self._journal.record("error", "internal_error", fields)
