"""Which greenlet serves which request, and what is done about requests that take too long.

The supervisor finds a request overdue and notes that in its slot, as with threads. Its signal's handler may
run within any greenlet, or in the hub. If it is the overdue one's own, which computes and so keeps the hub
from everything, the exception is raised at once. All others wait for something: the hub throws it into them.
"""

import traceback
from functools import partial
from time import monotonic_ns
from types import FrameType

from greenlet import getcurrent

from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.greenlets.serving import ServingGreenlet
from ostler.workers.soft_interrupt import SoftInterrupts, is_in_app
from ostler.workers.stacks import dump_of
from ostler.wsgi.interruption import DeadlineExceeded


class GreenletSoftInterrupts(SoftInterrupts):
    """As `SoftInterrupts`, for greenlets: the owner of a slot is the ServingGreenlet whose request it shows.

    Attributes:
        late: overdue requests that the hub is to end: their slots, and when they began.
    """

    def __init__(self, accounting: Accounting) -> None:
        super().__init__(accounting)
        self.late: list[tuple[RequestSlot, int]] = []

    def end(self, started: int) -> None:
        """Nothing to cancel: `end_late` checks the request's start before it raises."""

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """The handler of INTERRUPT_SIGNAL; what it leaves in `late` is for the hub.

        Raises:
            DeadlineExceeded: the greenlet that the signal has interrupted serves an overdue request.
        """
        here = getcurrent()
        now = monotonic_ns()
        ours: ServingGreenlet | None = None
        for slot in tuple(self._slots):
            greenlet = slot.owner
            if greenlet is None or not _is_to_end(greenlet, slot, now):
                continue
            if greenlet is here:
                ours = greenlet
            else:
                self.late.append((slot, slot.started))
        if ours is not None and is_in_app(frame):
            ours.interrupted = ours.slot.started
            raise DeadlineExceeded

    def end_late(self) -> None:
        """End what `interrupt` has left; called in the hub."""
        late, self.late = self.late, []
        now = monotonic_ns()
        for slot, started in late:
            greenlet = slot.owner
            if greenlet is not None and slot.started == started and _is_to_end(greenlet, slot, now):
                greenlet.interrupted = started
                greenlet.throw(DeadlineExceeded)

    def stacks(self, frame: FrameType | None) -> str:
        """Where overdue requests are, in faulthandler's format; `frame`: that of the current greenlet."""
        here = getcurrent()
        found = []
        for slot in tuple(self._slots):
            greenlet, started = slot.owner, slot.started
            if greenlet is not None and started and slot.overdue == started:
                frame_of = frame if greenlet is here else greenlet.gr_frame
                found.append((slot.ident, partial(traceback.extract_stack, frame_of)))
        return dump_of("greenlet", found)

    def slot_at_hand(self) -> RequestSlot | None:
        slot: RequestSlot | None = getattr(getcurrent(), "slot", None)
        return slot


def _is_to_end(greenlet: ServingGreenlet, slot: RequestSlot, now: int) -> bool:
    """Whether a greenlet's request is overdue, and was not ended yet."""
    return slot.is_overdue(now) and greenlet.interrupted != slot.started
