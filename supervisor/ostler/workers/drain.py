"""Draining: a worker serves what it has and ends, within its graceful time-out.

The seconds come in `messages.Drain`, from `fleet/workers.py`; after SIGTERM they are those of the settings.
"""

from time import monotonic_ns

from ostler.workers.units import SECOND

# How long (ns) before the deadline connections that the app has taken are ended, at most.
_UPGRADED_LEAD = SECOND


class DrainState:
    """Whether a worker drains, and until when.

    `ask` may be called by any thread and any signal handler. `abandoned` may be set by a signal handler of
    the main thread, and `deadline` is also read by the main thread when `run` ends. The rest is only for the
    thread that polls.

    Args:
        graceful_timeout: seconds, from the settings.
        can_hand_off: connections can be handed off to siblings.

    Attributes:
        asked: `ask` was called.
        hand_over: siblings go on serving: idle connections are handed off to them.
        abandoned: the listeners are closed at once.
        empties: descriptors of the listeners from which connections are accepted until they are shut; set by
            any thread.
        began: when the polling thread began to act on it (CLOCK_MONOTONIC, ns); deadline: when it is to end,
            None before it began.
    """

    __slots__ = (
        *("_can_hand_off", "_seconds", "abandoned", "asked", "began", "deadline"),
        *("empties", "hand_over"),
    )

    def __init__(self, graceful_timeout: float, can_hand_off: bool) -> None:
        self._seconds = graceful_timeout
        self._can_hand_off = can_hand_off
        self.asked = False
        self.hand_over = False
        self.abandoned = False
        self.empties: frozenset[int] = frozenset()
        self.began = 0
        self.deadline: int | None = None

    def ask(self, hand_over: bool, seconds: float | None) -> None:
        """Drain from the next pass of the loop on; a later call may change how.

        Args:
            seconds: how long it may take from now on; None: the settings' graceful time-out, or that of an
                earlier call.
        """
        self.hand_over = hand_over and self._can_hand_off
        if seconds is not None:
            self._seconds = seconds
            if self.deadline is not None:
                self.deadline = monotonic_ns() + int(seconds * SECOND)
        self.asked = True

    def begin(self) -> bool:
        """Note that it has begun; False if it had before."""
        if self.deadline is not None:
            return False
        self.began = monotonic_ns()
        self.deadline = self.began + int(self._seconds * SECOND)
        return True

    def upgraded_lead(self) -> int:
        """How long (ns) before the deadline upgraded connections are ended: their apps need a moment."""
        return min(_UPGRADED_LEAD, int(self._seconds * SECOND) // 4)

    def is_over(self, now: int) -> bool:
        """Whether the time is over, whatever is unanswered."""
        return self.deadline is not None and now >= self.deadline
