"""One worker's cell, as the supervisor reads it.

The part of it that is in use is copied by pread(2), and the copy is checked (`plausible`). The file is not
mapped: whatever the worker does to it, the worst result is a read that is too short. Reading a page that was
never written allocates nothing.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import add
from sys import byteorder

import msgspec

from ostler.scoreboard import layout
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.plausible import (
    extended_until,
    implausible_counts,
    implausible_time,
    progressed_at,
    shown_method,
    shown_path,
)

# Slots that are read at once, some 800 KB. Those beyond show requests, but nothing is counted there: they
# belong to event loops and greenlets, which count in the first.
_AT_ONCE = 257

# In words.
_HEADER = layout.PAGE // layout.WORD
_SLOT = layout.SLOT_SIZE // layout.WORD
# The part of a slot that shows whether anything was counted there, in bytes: histograms change only with it.
_SENT_TO_CLOSED = slice(layout.BYTES_SENT * layout.WORD, (layout.CLOSED + 1) * layout.WORD)
# HANDED_OFF, the answers, RECEIVED.
_ANSWERS = slice(layout.HANDED_OFF * layout.WORD, (layout.RECEIVED + 1) * layout.WORD)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request in the app.

    Times are CLOCK_MONOTONIC in seconds.

    Attributes:
        thread: the number of its request slot, from 0 on.
        method, path: printable ASCII, see `plausible`.
        started_ns: `started` as the worker wrote it, in nanoseconds. It identifies the request in its slot.
        ident: what a stack dump calls its thread or greenlet.
        extended_until: up to when the app has asked for time, 0.0 if it has not asked, inf: without a limit.
        overdue: it was marked as overdue (`Scoreboard.mark_overdue`).
        progressed: when it last made progress: sent a part of its answer, or received one of its body; 0.0:
            not since it began; inf: its time does not count now, because it waits for its client.
        upgraded: it has taken its connection, e.g. for a websocket, and has no deadline.
    """

    thread: int
    method: str
    path: str
    started_ns: int
    ident: int
    extended_until: float = 0.0
    overdue: bool = False
    progressed: float = 0.0
    upgraded: bool = False

    @property
    def started(self) -> float:
        return self.started_ns / 1e9

    def deadline(self, timeout: float, limit: float = 0.0) -> float | None:
        """When it is overdue; None: never.

        Args:
            timeout: seconds that a request may take without progress; 0: any.
            limit: seconds that a request may take in all, whatever it does; 0: any. Not for websockets.
        """
        if self.upgraded or self.extended_until == math.inf:
            return None
        due = self.timeout_at(timeout)
        return min(due, self.started + limit) if limit else (None if due == math.inf else due)

    def timeout_at(self, timeout: float) -> float:
        """When it has taken longer than `timeout` without progress; inf: never, which is what 0 means."""
        if not timeout:
            return math.inf
        return max(max(self.started, self.progressed) + timeout, self.extended_until)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a cell said when it was read.

    Attributes:
        in_flight: the requests in the app, by slot.
        heartbeat: when the worker's loop passed last (CLOCK_MONOTONIC, seconds); 0.0 before the first time.
        slots: how many request slots the worker uses.
        ident: what a stack dump calls the main thread; 0 before it has a slot.
    """

    counts: Counts = field(default_factory=Counts)
    in_flight: list[InFlight] = field(default_factory=list)
    heartbeat: float = 0.0
    slots: int = 0
    ident: int = 0


class CellState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries of a cell. fd: its descriptor."""

    number: int
    fd: int
    slots: int
    born: int
    looked: int
    counts: Counts
    trusted: bool


class ImplausibleCell(Exception):
    """A cell says what can't be true; the text says what."""


class Cell:
    """One worker's cell.

    Args:
        fd: the descriptor of its memory.
        slots: how many request slots it has, whatever is written there.
        born: CLOCK_MONOTONIC in ns when it was made, which is before the worker's fork.

    Attributes:
        reading: the newest one that is plausible.
        trusted: so far all was.
        marked: by slot, what STARTED was in the request that was found overdue.
        rests_until: CLOCK_MONOTONIC in ns; it is not read before, because reading it costs much.
    """

    __slots__ = (
        *("_counted", "_looked", "_raw", "_read_at_once"),
        *("born", "fd", "marked", "reading", "rests_until", "slots", "trusted"),
    )

    def __init__(self, fd: int, slots: int, born: int) -> None:
        self.fd = fd
        self.slots = slots
        self.born = self._looked = born
        self.reading = Reading()
        self.trusted = True
        self.marked: dict[int, int] = {}
        self.rests_until = 0
        # Header and first slots as they were read last; whether these were counted; when that was done last.
        self._raw = b""
        self._counted = False
        # How many slots are read together with the header: as many as were in use the last time.
        self._read_at_once = min(slots, 2)

    def carried(self, number: int) -> CellState:
        return CellState(
            number, self.fd, self.slots, self.born, self._looked, self.reading.counts, self.trusted
        )

    @classmethod
    def taken_over(cls, state: CellState) -> "Cell":
        """After an upgrade in place."""
        cell = cls(state.fd, state.slots, state.born)
        cell._looked = state.looked
        cell.reading = Reading(state.counts)
        cell.trusted = state.trusted
        return cell

    def read(self, clock: Callable[[], int], count: bool) -> None:
        """Read what the worker has written.

        Args:
            clock: CLOCK_MONOTONIC in ns.
            count: also what it has counted.

        Raises:
            ImplausibleCell: it can't be true; `reading` is as before.
        """
        raw, slots = self._copy()
        more = [self._copy_of(first, slots) for first in range(_AT_ONCE, slots, _AT_ONCE)]
        now = clock()  # after the copies: what is in there was earlier
        new = raw != self._raw or bool(more)
        if new or (count and not self._counted):
            words = memoryview(raw).cast("Q")
            beat = words[layout.HEARTBEAT]
            _raise(implausible_time("the heartbeat", beat, self.born, now))
            in_flight = self._in_flight([raw[layout.PAGE :], *more], now) if new else self.reading.in_flight
            counts = self._counts(raw, words, slots, now) if count else self.reading.counts
            ident = words[_HEADER + layout.IDENT] if slots else 0
            self.reading = Reading(counts, in_flight, beat / 1e9, slots, ident)
            self._raw, self._counted = raw, count
        if count:
            self._looked = now

    def distrust(self) -> None:
        """Keep what was counted so far, and forget everything else."""
        self.trusted = False
        self.reading = Reading(self.reading.counts)
        self._raw = b""

    def last_requests(self, most: int) -> list[str]:
        """Lines like `GET /path`; what is in flight first, the longest before others.

        Raises:
            ImplausibleCell: what a slot says can't be true.
        """
        busy = sorted(self.reading.in_flight, key=lambda request: request.started_ns)
        found = [f"{request.method} {request.path}" for request in busy]
        shown = {request.thread for request in busy}
        slots = self._raw[layout.PAGE :]
        words = memoryview(slots).cast("Q")
        for number in range(len(slots) // layout.SLOT_SIZE):
            if len(found) >= most:
                break
            if number not in shown:
                method, path = _text(slots, words, number)
                if method:
                    found.append(f"{method} {path}")
        return found[:most]

    def is_overdue(self, number: int) -> bool:
        """Whether the request in a slot is the one that was marked last."""
        marked = self.marked.get(number, 0)
        return bool(marked) and self._started_now(number) == marked

    def mark(self, number: int, started_ns: int, since: int) -> None:
        """Write into a slot which request is overdue, and since when (layout.OVERDUE_SINCE)."""
        self.marked[number] = started_ns
        self._raw = b""  # the next reading shows it, whatever the worker has written there
        for place, word in ((layout.OVERDUE_SINCE, since), (layout.OVERDUE, started_ns)):
            os.pwrite(self.fd, word.to_bytes(layout.WORD, byteorder), _place(number, place))

    def _copy(self) -> tuple[bytes, int]:
        """Header and first slots, all of one moment or nearly so; and how many slots are in use."""
        while True:
            raw = self._pread(layout.PAGE + self._read_at_once * layout.SLOT_SIZE, 0)
            start = layout.SLOTS_IN_USE * layout.WORD
            in_use = int.from_bytes(raw[start : start + layout.WORD], byteorder)
            if in_use > self.slots:
                raise ImplausibleCell(f"{in_use} request slots are in use, of {self.slots}")
            needed = min(in_use, _AT_ONCE)
            enough = needed <= self._read_at_once
            self._read_at_once = max(needed, 1)
            if enough:
                return raw[: layout.PAGE + needed * layout.SLOT_SIZE], in_use

    def _copy_of(self, first: int, slots: int) -> bytes:
        """Some more slots, from the `first` on."""
        return self._pread((min(first + _AT_ONCE, slots) - first) * layout.SLOT_SIZE, _place(first, 0))

    def _pread(self, size: int, place: int) -> bytes:
        raw = os.pread(self.fd, size, place)
        if len(raw) < size:
            raise ImplausibleCell("its memory was truncated")
        return raw

    def _started_now(self, number: int) -> int:
        return int.from_bytes(os.pread(self.fd, layout.WORD, _place(number, layout.STARTED)), byteorder)

    def _counts(self, raw: bytes, words: memoryview, slots: int, now: int) -> Counts:
        numbers = words[_HEADER : _HEADER + layout.COUNTED].tolist() if slots else [0] * layout.COUNTED
        for number in range(1, min(slots, _AT_ONCE)):
            start = _HEADER + number * _SLOT
            slot = raw[start * layout.WORD : (start + layout.HISTOGRAM) * layout.WORD]
            if any(slot[_SENT_TO_CLOSED]) or any(slot[_ANSWERS]):  # loops count in the first only
                numbers = list(map(add, numbers, words[start : start + layout.COUNTED].tolist()))
        counts = Counts(
            numbers[layout.BYTES_SENT],
            numbers[layout.OPENED],
            numbers[layout.CLOSED],
            numbers[layout.HANDED_OFF],
            numbers[layout.RECEIVED],
            numbers[layout.STATUS_CLASSES : layout.STATUS_CLASSES + 10],
            numbers[layout.HISTOGRAM : layout.HISTOGRAM + layout.BUCKETS],
            numbers[layout.QUEUED : layout.QUEUED + layout.BUCKETS],
            numbers[layout.REFUSED : layout.COUNTED],
        )
        seconds, age = (now - self._looked) / 1e9, (now - self.born) / 1e9
        _raise(implausible_counts(self.reading.counts, counts, seconds, age))
        return counts

    def _in_flight(self, parts: list[bytes], now: int) -> list[InFlight]:
        """The requests in copies of the slots, `_AT_ONCE` in each."""
        known = {request.thread: request for request in self.reading.in_flight}
        found = []
        for part, slots in enumerate(parts):
            words = memoryview(slots).cast("Q")
            for place, started in enumerate(words[layout.STARTED :: _SLOT].tolist()):
                if not started:
                    continue
                number, start = part * _AT_ONCE + place, place * _SLOT
                # In this order: the worker writes them the other way round.
                extended = words[start + layout.EXTENDED_FOR] == started
                until = extended_until(words[start + layout.EXTENDED_UNTIL], now) if extended else 0.0
                marked = self.marked.get(number) == started
                progressed = progressed_at(words[start + layout.PROGRESSED], started, now)
                upgraded = words[start + layout.UPGRADED] == started
                request = known.get(number)
                if request is not None and request.started_ns == started:
                    before = request.extended_until, request.overdue, request.progressed, request.upgraded
                    if before != (until, marked, progressed, upgraded):
                        request = replace(
                            request,
                            extended_until=until,
                            overdue=marked,
                            progressed=progressed,
                            upgraded=upgraded,
                        )
                    found.append(request)
                    continue
                _raise(implausible_time("a request's start", started, self.born, now))
                method, path = _text(slots, words, place)
                # One that has ended while it was copied may have the next one's text.
                if self._started_now(number) == started:
                    ident = words[start + layout.IDENT]
                    changing = until, marked, progressed, upgraded
                    found.append(InFlight(number, method, path, started, ident, *changing))
        return found


def _text(slots: bytes, words: memoryview, number: int) -> tuple[str, str]:
    """Method and path in the text of one of these slots.

    Raises:
        ImplausibleCell: it is longer than there is room for.
    """
    start = number * _SLOT
    method_length, path_length = words[start + layout.METHOD_LENGTH], words[start + layout.PATH_LENGTH]
    if method_length > layout.METHOD_SIZE or path_length > layout.PATH_SIZE:
        raise ImplausibleCell("a request's text is longer than there is room for")
    text = number * layout.SLOT_SIZE + layout.TEXT
    method = slots[text : text + method_length]
    target = slots[text + layout.METHOD_SIZE : text + layout.METHOD_SIZE + path_length]
    # Queries hold tokens and personal data; the path says enough.
    return shown_method(method), shown_path(target.partition(b"?")[0])


def _place(number: int, word: int) -> int:
    """Where a word of a slot is in the file, in bytes."""
    return layout.PAGE + number * layout.SLOT_SIZE + word * layout.WORD


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise ImplausibleCell(problem)
