"""Which greenlet serves which request, and what is done about those that take too long.

The supervisor finds a request overdue and marks it in its lane, as with threads. Its signal's handler may run
within any greenlet, or in the hub. If it is the overdue one's own, which computes and so keeps the hub from
everything, the exception is raised at once. All others wait for something: the hub throws it into them.
"""

import traceback
from time import monotonic_ns
from types import FrameType

from greenlet import getcurrent

from ostler.scoreboard import layout
from ostler.scoreboard.writer import CellWriter, Words
from ostler.workers.interrupt import Deadlines, is_extended, is_in_app
from ostler.workers.lane import Berth, Lane
from ostler.wsgi.exchange import DeadlineExceeded

# A request that is in the app for this long (ns) is worth being shown.
_OLD = 1_000_000_000
# Bytes of stacks in one dump: what the supervisor keeps of it is not much more.
_ENOUGH = 32 * 1024


class Berths:
    """The lanes of a worker whose greenlets serve.

    The first lane is the house's own, where everything is counted. The others are taken into use as they are
    needed: what has never been needed costs neither memory nor the supervisor's time.

    Attributes:
        house: the first lane; all: every berth that was ever made.
    """

    def __init__(self, cell: CellWriter) -> None:
        self._cell = cell
        self.house = Lane(cell, 0)
        self.all: list[Berth] = []
        self._shown = 0
        self._free: list[Berth] = []
        self._free_unseen: list[Berth] = []
        cell.header[layout.SLOTS_IN_USE] = 1

    def take(self) -> Berth:
        if self._free:
            return self._free.pop()
        if self._shown < self._cell.threads:
            self._shown += 1
            self._cell.header[layout.SLOTS_IN_USE] = self._shown + 1
            berth = Berth(self.house, self._cell, self._shown)
        elif self._free_unseen:
            return self._free_unseen.pop()
        else:
            berth = Berth(self.house, None, 0)
        self.all.append(berth)
        return berth

    def give_back(self, berth: Berth) -> None:
        (self._free if berth.number else self._free_unseen).append(berth)

    def show_the_oldest(self, now: int) -> None:
        """Give requests that nobody sees, though they are old, the places of younger ones."""
        if len(self.all) == self._shown:
            return
        unseen = [b for b in self.all if not b.number and 0 < b.flight[layout.STARTED] < now - _OLD]
        unseen.sort(key=lambda berth: berth.flight[layout.STARTED])
        for berth in unseen:
            if self._free:
                other = self._free.pop()
                self._free_unseen.append(other)
            else:
                other = max((b for b in self.all if b.number), key=lambda b: b.flight[layout.STARTED])
                if other.flight[layout.STARTED] < berth.flight[layout.STARTED]:
                    return
            berth.change_places(other)


class GreenletDeadlines(Deadlines):
    """As `Deadlines`, for greenlets.

    Attributes:
        late: overdue requests that the hub is to end, and what STARTED was in them.
    """

    def __init__(self, cell: CellWriter, berths: Berths) -> None:
        super().__init__(cell)
        self._berths = berths
        self.late: list[tuple[Berth, int]] = []

    def end(self, started: int) -> None:
        """Nothing waits to be raised that could meet another request."""

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """The handler of INTERRUPT_SIGNAL; what it leaves in `late` is for the hub.

        Raises:
            DeadlineExceeded: the greenlet that the signal has interrupted serves an overdue request.
        """
        here = getcurrent()
        now = monotonic_ns()
        ours = None
        for berth in self._berths.all:
            started = berth.flight[layout.STARTED]
            if berth.greenlet is None or not _is_overdue(berth, started, now):
                continue
            if berth.greenlet is here:
                ours = berth
            else:
                self.late.append((berth, started))
        if ours is not None and is_in_app(frame):
            ours.interrupted = ours.flight[layout.STARTED]
            raise DeadlineExceeded

    def end_late(self) -> None:
        """Called in the hub."""
        late, self.late = self.late, []
        now = monotonic_ns()
        for berth, started in late:
            serving = berth.greenlet
            goes_on = serving is not None and berth.flight[layout.STARTED] == started
            if goes_on and _is_overdue(berth, started, now):
                berth.interrupted = started
                serving.throw(DeadlineExceeded)

    def stacks(self, frame: FrameType | None) -> str:
        """Where overdue requests are, in faulthandler's format; `frame`: that of the current greenlet."""
        here = getcurrent()
        lines: list[str] = []
        size = 0
        for berth in self._berths.all:
            started = berth.flight[layout.STARTED]
            serving = berth.greenlet
            if not started or berth.flight[layout.OVERDUE] != started or serving is None:
                continue
            lines.append(f"Thread 0x{berth.flight[layout.IDENT]:016x} (greenlet, most recent call first):")
            if size > _ENOUGH:
                lines.append("  (left out: too many requests are overdue)")
                continue
            found = _trace(frame if serving is here else serving.gr_frame)
            lines += found
            size += sum(map(len, found))
        return "\n".join((*lines, ""))

    def _at_hand(self) -> Words | None:
        berth = getattr(getcurrent(), "berth", None)
        return None if berth is None else berth.flight


def _is_overdue(berth: Berth, started: int, now: int) -> bool:
    flight = berth.flight
    marked = started and flight[layout.OVERDUE] == started and berth.interrupted != started
    return bool(marked) and not is_extended(flight, started, now)


def _trace(frame: FrameType | None) -> list[str]:
    found = reversed(traceback.extract_stack(frame))
    return [f'  File "{entry.filename}", line {entry.lineno} in {entry.name}' for entry in found]
