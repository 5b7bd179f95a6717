"""The supervisor's side of the scoreboard: what workers do right now, and totals that never go backwards.

A cell is read as a whole, and that copy is looked at: is what it says possible (`plausible`)? If not, what
its worker has counted before stays, what it says from then on is not even read, and `on_implausible` is
called, once.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import add
from sys import byteorder

import msgspec

from ostler.scoreboard import layout, memory
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.plausible import (
    doubt_counts,
    doubt_time,
    extended_until,
    shown_method,
    shown_path,
)

_LAST_REQUESTS = 5

# In words.
_HEADER = layout.PAGE // layout.WORD
_LANE = layout.SLOT_SIZE // layout.WORD
_COUNTED = layout.QUEUED + layout.BUCKETS
# What of a lane says whether anything was counted there, in bytes; the rest comes with these.
_SENT_TO_CLOSED = slice(layout.BYTES_SENT * layout.WORD, (layout.CLOSED + 1) * layout.WORD)
_GIVEN_TO_TAKEN = slice(
    layout.HANDED_OFF * layout.WORD, (layout.RECEIVED + 1) * layout.WORD
)  # answers in between


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request in the app.

    Times are CLOCK_MONOTONIC in seconds; started_ns: `started` as the worker wrote it, in nanoseconds, which
    tells the request from others of its lane.
    method, path: printable ASCII, see `plausible`.
    ident: the thread as faulthandler names it.
    extended_until: up to when the app wants to be given time for it, 0.0 if it has not asked, inf: forever.
    overdue: it was marked as that (`Scoreboard.mark_overdue`).
    """

    thread: int
    method: str
    path: str
    started_ns: int
    ident: int
    extended_until: float = 0.0
    overdue: bool = False

    @property
    def started(self) -> float:
        return self.started_ns / 1e9

    def deadline(self, timeout: float) -> float | None:
        """When it is overdue if requests may take `timeout` seconds; None: never, which is what 0 means."""
        if not timeout or self.extended_until == math.inf:
            return None
        return max(self.started + timeout, self.extended_until)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a cell said when it was read.

    slots: how many of them the worker uses; heartbeat: when its loop passed last (CLOCK_MONOTONIC, seconds),
    0.0 before the first time; ident: the main thread as faulthandler names it, 0 before it has a lane;
    in_flight: the requests in the app, by thread.
    """

    counts: Counts = field(default_factory=Counts)
    in_flight: list[InFlight] = field(default_factory=list)
    heartbeat: float = 0.0
    slots: int = 0
    ident: int = 0


class CellState(msgspec.Struct, frozen=True):
    """What a cell is made from again after an upgrade in place. fd: its descriptor."""

    number: int
    fd: int
    slots: int
    born: int
    looked: int
    counts: Counts
    trusted: bool


class ScoreboardState(msgspec.Struct, frozen=True):
    """The same for all of it. gone: the counts of cells that were given back; newest: the last number."""

    cells: list[CellState]
    gone: Counts
    newest: int


class _Implausible(Exception):
    """A cell says what can't be true; the text says what."""


class _Cell:
    """One worker's cell.

    Args:
        slots: how many it has, whatever is written there.
        born: CLOCK_MONOTONIC in ns when it was made, which is before the worker's fork.

    Attributes:
        reading: the newest one that is plausible.
        trusted: so far all was.
        marked: by lane, what STARTED was in the request that was found overdue.
    """

    __slots__ = (
        *("_counted", "_slots_read", "_looked", "_raw"),
        *("born", "fd", "slots", "marked", "reading", "trusted"),
    )

    def __init__(self, fd: int, slots: int, born: int) -> None:
        self.fd = fd
        self.slots = slots
        self.born = self._looked = born
        self.reading = Reading()
        self.trusted = True
        self.marked: dict[int, int] = {}
        # What was read last, whether it was counted, and when that was done last.
        self._raw = b""
        self._counted = False
        # Workers of greenlets take slots into use as they need them, mostly few.
        self._slots_read = min(slots, 2)

    def carried(self, number: int) -> CellState:
        return CellState(
            number, self.fd, self.slots, self.born, self._looked, self.reading.counts, self.trusted
        )

    @classmethod
    def taken_over(cls, state: CellState) -> "_Cell":
        cell = cls(state.fd, state.slots, state.born)
        cell._looked = state.looked
        cell.reading = Reading(state.counts)
        cell.trusted = state.trusted
        return cell

    def read(self, clock: Callable[[], int], count: bool) -> None:
        """Read what the worker has written.

        count: also what it has counted, which takes longest.

        Raises:
            _Implausible: it can't be true; `reading` is as before.
        """
        raw = self._copy()
        now = clock()  # after the copy: what is in there was earlier
        new = raw != self._raw
        if new or (count and not self._counted):
            words = memoryview(raw).cast("Q")
            slots, beat = words[layout.SLOTS_IN_USE], words[layout.HEARTBEAT]
            _raise(doubt_time("the heartbeat", beat, self.born, now))
            in_flight = self._in_flight(raw, words, slots, now) if new else self.reading.in_flight
            counts = self._counts(raw, words, slots, now) if count else self.reading.counts
            ident = words[_HEADER + layout.IDENT] if slots else 0
            self.reading = Reading(counts, in_flight, beat / 1e9, slots, ident)
            self._raw, self._counted = raw, count
        if count:
            self._looked = now

    def distrust(self) -> None:
        """What has been counted stays; nothing else is known any more."""
        self.trusted = False
        self.reading = Reading(self.reading.counts)
        self._raw = b""

    def last_requests(self) -> list[str]:
        """As lines like `GET /path`; what is in flight first, the longest before others."""
        busy = sorted(self.reading.in_flight, key=lambda request: request.started_ns)
        found = [f"{request.method} {request.path}" for request in busy]
        shown = {request.thread for request in busy}
        words = memoryview(self._raw).cast("Q")
        for thread in range(self.reading.slots):
            if thread not in shown:
                method, path = self._text(self._raw, words, thread)
                if method:
                    found.append(f"{method} {path}")
        return found

    def is_overdue(self, thread: int) -> bool:
        started = self.marked.get(thread)
        where = (_lane(thread) + layout.STARTED) * layout.WORD
        return bool(started) and int.from_bytes(os.pread(self.fd, layout.WORD, where), byteorder) == started

    def mark(self, thread: int, started_ns: int) -> None:
        self.marked[thread] = started_ns
        self._raw = b""  # the next reading shows it, whatever the worker has written there
        word = started_ns.to_bytes(layout.WORD, byteorder)
        os.pwrite(self.fd, word, _lane(thread) * layout.WORD + layout.OVERDUE * layout.WORD)

    def _copy(self) -> bytes:
        """Header and slots in use, all of one moment or nearly so."""
        while True:
            size = layout.PAGE + self._slots_read * layout.SLOT_SIZE
            raw = os.pread(self.fd, size, 0)
            if len(raw) < size:
                raise _Implausible("its memory is cut off")
            start = layout.SLOTS_IN_USE * layout.WORD
            in_use = int.from_bytes(raw[start : start + layout.WORD], byteorder)
            if in_use > self.slots:
                raise _Implausible(f"{in_use} request slots are in use, of {self.slots}")
            enough = in_use <= self._slots_read
            self._slots_read = max(in_use, 1)
            if enough:
                return raw

    def _counts(self, raw: bytes, words: memoryview, slots: int, now: int) -> Counts:
        numbers = words[_HEADER : _HEADER + _COUNTED].tolist() if slots else [0] * _COUNTED
        for thread in range(1, slots):
            start = _lane(thread)
            lane = raw[start * layout.WORD : (start + layout.HISTOGRAM) * layout.WORD]
            if any(lane[_SENT_TO_CLOSED]) or any(lane[_GIVEN_TO_TAKEN]):  # greenlets count in the first only
                numbers = list(map(add, numbers, words[start : start + _COUNTED].tolist()))
        counts = Counts(
            numbers[layout.BYTES_SENT],
            numbers[layout.OPENED],
            numbers[layout.CLOSED],
            numbers[layout.HANDED_OFF],
            numbers[layout.RECEIVED],
            numbers[layout.STATUS_CLASSES : layout.STATUS_CLASSES + 10],
            numbers[layout.HISTOGRAM : layout.HISTOGRAM + layout.BUCKETS],
            numbers[layout.QUEUED : layout.QUEUED + layout.BUCKETS],
        )
        seconds, age = (now - self._looked) / 1e9, (now - self.born) / 1e9
        _raise(doubt_counts(self.reading.counts, counts, seconds, age))
        return counts

    def _in_flight(self, raw: bytes, words: memoryview, slots: int, now: int) -> list[InFlight]:
        found = []
        for thread, started in enumerate(_started(words, slots)):
            if not started:
                continue
            _raise(doubt_time("a request's start", started, self.born, now))
            start = _lane(thread)
            method, path = self._text(raw, words, thread)
            # In this order: the worker writes them the other way round.
            extended = words[start + layout.EXTENDED_FOR] == started
            until = extended_until(words[start + layout.EXTENDED_UNTIL], now) if extended else 0.0
            ident = words[start + layout.IDENT]
            marked = self.marked.get(thread) == started
            found.append(InFlight(thread, method, path, started, ident, until, marked))
        if not found:
            return found
        again = memoryview(os.pread(self.fd, len(raw), 0))
        if len(again) < len(raw):
            raise _Implausible("its memory is cut off")
        now_started = _started(again.cast("Q"), slots)
        # Those that ended while they were read may have the next one's text.
        return [request for request in found if now_started[request.thread] == request.started_ns]

    def _text(self, raw: bytes, words: memoryview, thread: int) -> tuple[str, str]:
        """Method and path in a lane's text."""
        start = _lane(thread)
        method_length, path_length = (
            words[start + layout.METHOD_LENGTH],
            words[start + layout.PATH_LENGTH],
        )
        if method_length > layout.METHOD_SIZE or path_length > layout.PATH_SIZE:
            raise _Implausible("a request's text is longer than there is room for")
        text = start * layout.WORD + layout.TEXT
        method = raw[text : text + method_length]
        target = raw[text + layout.METHOD_SIZE : text + layout.METHOD_SIZE + path_length]
        # Queries hold tokens and personal data; the path says enough.
        return shown_method(method), shown_path(target.partition(b"?")[0])


class Scoreboard:
    """All cells; makes them for workers and takes them back.

    Args:
        state: of the one to go on with.
        clock: CLOCK_MONOTONIC in ns, as the workers' time stamps are.

    Attributes:
        on_implausible: called with a cell and what in it can't be true; once for each cell.
    """

    def __init__(
        self, state: ScoreboardState | None = None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._clock = clock
        self._cells: dict[int, _Cell] = {}
        self._gone = state.gone if state else Counts()
        self._newest = state.newest if state else 0
        for cell in state.cells if state else ():
            self._cells[cell.number] = _Cell.taken_over(cell)
        self.on_implausible: Callable[[int, str], object] = lambda _cell, _problem: None

    def snapshot(self) -> ScoreboardState:
        cells = [cell.carried(number) for number, cell in self._cells.items()]
        return ScoreboardState(cells, self._gone, self._newest)

    def close(self) -> None:
        """Let go of all memory."""
        for cell in self._cells.values():
            os.close(cell.fd)
        self._cells.clear()

    def take_cell(self, slots: int) -> int:
        """A cell for a new worker: its number.

        Args:
            slots: how many it has.

        Raises:
            OSError: as `memory.create`.
        """
        fd = memory.create(slots)
        self._newest += 1
        self._cells[self._newest] = _Cell(fd, slots, self._clock())
        return self._newest

    def fileno(self, cell: int) -> int:
        """What the worker is to map."""
        return self._cells[cell].fd

    def give_back(self, cell: int) -> Counts:
        """Fold a dead worker's counts into the totals and let go of its cell; returns its last counts."""
        counts = self.read(cell).counts
        # What was open ended with the process.
        counts.closed += counts.connections
        self._gone.add(counts)
        os.close(self._cells.pop(cell).fd)
        return counts

    def read(self, cell: int) -> Reading:
        """What a cell says, as far as that can be true."""
        return self._read(cell, count=True)

    def look(self, cell: int) -> Reading:
        """As `read`, but what is counted in it may be older."""
        return self._read(cell, count=False)

    def last(self, cell: int) -> Reading:
        """The newest of what is known of a cell, without reading it."""
        return self._cells[cell].reading

    def _read(self, cell: int, count: bool) -> Reading:
        found = self._cells[cell]
        if found.trusted:
            try:
                try:
                    found.read(self._clock, count)
                except _Implausible:
                    # Once more: that a word is copied whole is no more than usual.
                    found.read(self._clock, count)
            except _Implausible as doubt:
                found.distrust()
                self.on_implausible(cell, str(doubt))
        return found.reading

    def read_all(self) -> dict[int, Reading]:
        """What all cells say."""
        return {cell: self.read(cell) for cell in list(self._cells)}

    def trusted(self, cell: int) -> bool:
        """Whether all that was read of a cell can be true."""
        return self._cells[cell].trusted

    def slots(self, cell: int) -> int:
        return self.look(cell).slots

    def heartbeat(self, cell: int) -> float:
        """See `Reading`, as for those below."""
        return self.look(cell).heartbeat

    def ident(self, cell: int) -> int:
        return self.look(cell).ident

    def counts(self, cell: int) -> Counts:
        return self.read(cell).counts

    def in_flight(self, cell: int) -> list[InFlight]:
        return self.look(cell).in_flight

    def last_requests(self, cell: int) -> list[str]:
        """What the worker did last, as lines like `GET /path`, at most five; also if it is dead.

        What it was still doing comes first, the longest first, then the last of each thread that was idle.
        """
        self.look(cell)
        found = self._cells[cell]
        try:
            return found.last_requests()[:_LAST_REQUESTS] if found.trusted else []
        except _Implausible as doubt:
            found.distrust()
            self.on_implausible(cell, str(doubt))
            return []

    def mark_overdue(self, cell: int, thread: int, started_ns: int) -> None:
        """Let the worker know that a request is overdue, if that is still what the thread does."""
        self._cells[cell].mark(thread, started_ns)

    def is_overdue(self, cell: int, thread: int) -> bool:
        """Whether what the thread does is still what was marked last."""
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


def _lane(thread: int) -> int:
    """Its first word."""
    return _HEADER + thread * _LANE


def _started(words: memoryview, slots: int) -> list[int]:
    """STARTED of the first slots."""
    return words[_HEADER + layout.STARTED : _HEADER + slots * _LANE : _LANE].tolist()


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise _Implausible(problem)
