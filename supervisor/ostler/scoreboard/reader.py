"""The supervisor's side of the scoreboard: what workers do right now, and totals that never go backwards.

A worker whose cell says what can't be true is not trusted from then on: what it had counted before stays, its
cell is not read again, and `on_implausible` is called, once.

A worker can't make reading expensive: a cell that costs much is read less often, so that all of them together
take a tenth of the supervisor's time at most.
"""

import os
import time
from collections.abc import Callable, Mapping

import msgspec

from ostler.scoreboard import layout, memory
from ostler.scoreboard.cell_reader import Cell, CellState, ImplausibleCell, InFlight, Reading
from ostler.scoreboard.counts import Counts

_LAST_REQUESTS = 5
# Reading a cell for longer than this (ns of CPU time) is followed by a pause that is so many times as long,
# for each cell that there is.
_CHEAP = 2_000_000
_PAUSES = 10


class ScoreboardState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries of all cells.

    Attributes:
        gone: the counts of cells that were given back.
        newest: the last number of a cell.
    """

    cells: list[CellState]
    gone: Counts
    newest: int


class Scoreboard:
    """All cells; makes them for workers and removes them.

    Args:
        state: of the one to go on with, after an upgrade in place.
        clock: CLOCK_MONOTONIC in ns, as the workers' time stamps are.
        cpu_clock: the CPU time of the calling thread, in ns.

    Attributes:
        on_implausible: called with a cell and what in it can't be true; once for each cell.
    """

    def __init__(
        self,
        state: ScoreboardState | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        cpu_clock: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._cells: dict[int, Cell] = {}
        self._gone = state.gone if state else Counts()
        self._newest = state.newest if state else 0
        for cell in state.cells if state else ():
            self._cells[cell.number] = Cell.taken_over(cell)
        self.on_implausible: Callable[[int, str], object] = lambda _cell, _problem: None

    def snapshot(self) -> ScoreboardState:
        cells = [cell.carried(number) for number, cell in self._cells.items()]
        return ScoreboardState(cells, self._gone, self._newest)

    def close(self) -> None:
        """Close all memory."""
        for cell in self._cells.values():
            os.close(cell.fd)
        self._cells.clear()

    def allocate_cell(self, slots: int) -> int:
        """A cell for a new worker, with so many request slots: its number.

        Raises:
            OSError: as `memory.create`.
        """
        fd = memory.create(slots)
        self._newest += 1
        self._cells[self._newest] = Cell(fd, slots, self._clock())
        return self._newest

    def fileno(self, cell: int) -> int:
        """What the worker is to map."""
        return self._cells[cell].fd

    def free_cell(self, cell: int) -> Counts:
        """Add a dead worker's counts to the totals and close its cell; returns its last counts."""
        counts = self.counts(cell)
        # What was open ended with the process.
        counts.closed += counts.connections
        self._gone.add(counts)
        os.close(self._cells.pop(cell).fd)
        return counts

    def read(self, cell: int) -> Reading:
        """What a cell says, as far as that can be true; a moment ago, if reading it costs much."""
        return self._read(cell, count=True)

    def look(self, cell: int) -> Reading:
        """As `read`, but what is counted in it may be older."""
        return self._read(cell, count=False)

    def last(self, cell: int) -> Reading:
        """The newest of what is known of a cell, without reading it."""
        return self._cells[cell].reading

    def read_all(self) -> dict[int, Reading]:
        """`read` for all cells."""
        return {cell: self.read(cell) for cell in list(self._cells)}

    def _read(self, cell: int, count: bool, always: bool = False) -> Reading:
        """`always`: whatever it costs."""
        found = self._cells[cell]
        if not found.trusted or (not always and self._clock() < found.rests_until):
            return found.reading
        began = self._cpu_clock()
        try:
            try:
                found.read(self._clock, count)
            except ImplausibleCell:
                # Once more: that a word is copied whole is usual, but not guaranteed.
                found.read(self._clock, count)
        except ImplausibleCell as error:
            self._distrust(cell, error)
        cost = self._cpu_clock() - began
        if cost > _CHEAP:
            found.rests_until = self._clock() + cost * _PAUSES * len(self._cells)
        return found.reading

    def _distrust(self, cell: int, error: ImplausibleCell) -> None:
        self._cells[cell].distrust()
        self.on_implausible(cell, str(error))

    def trusted(self, cell: int) -> bool:
        """Whether all that was read of a cell can be true."""
        return self._cells[cell].trusted

    def slots(self, cell: int) -> int:
        """See `Reading`, as for those below. These are read whatever it costs."""
        return self._read(cell, count=False, always=True).slots

    def heartbeat(self, cell: int) -> float:
        return self._read(cell, count=False, always=True).heartbeat

    def ident(self, cell: int) -> int:
        return self._read(cell, count=False, always=True).ident

    def counts(self, cell: int) -> Counts:
        return self._read(cell, count=True, always=True).counts

    def in_flight(self, cell: int) -> list[InFlight]:
        return self._read(cell, count=False, always=True).in_flight

    def last_requests(self, cell: int) -> list[str]:
        """What the worker did last, as lines like `GET /path`, at most five; also if it is dead.

        What it was still doing comes first, the longest first, then the last of each slot that was idle.
        """
        self._read(cell, count=False, always=True)
        found = self._cells[cell]
        try:
            return found.last_requests(_LAST_REQUESTS) if found.trusted else []
        except ImplausibleCell as error:
            self._distrust(cell, error)
            return []

    def mark_overdue(
        self, cell: int, thread: int, started_ns: int, since: int | None = None, for_good: bool = False
    ) -> None:
        """Let the worker know that a request is overdue, if that is still what is in the slot `thread`.

        Args:
            since: before it was read that it is (ns): progress from then on makes it overdue no more. None:
                now.
            for_good: neither progress nor an extension gives it more time.
        """
        found = self._clock() if since is None else since
        self._cells[cell].mark(thread, started_ns, layout.NEVER if for_good else found)

    def is_overdue(self, cell: int, thread: int) -> bool:
        """Whether what is in the slot `thread` is still what was marked last."""
        found = self._cells[cell]
        return found.trusted and found.is_overdue(thread)

    def totals(self, readings: Mapping[int, Reading] | None = None) -> Counts:
        """Everything since the start, workers that are gone included.

        readings: what all cells say just now; without it they are read.
        """
        counts = Counts()
        counts.add(self._gone)
        for reading in (self.read_all() if readings is None else readings).values():
            counts.add(reading.counts)
        return counts
