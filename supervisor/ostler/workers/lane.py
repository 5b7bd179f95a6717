"""What a thread or a greenlet writes into its lane of the scoreboard."""

from typing import Any

from ostler.http1.request import Line
from ostler.osapi import original
from ostler.scoreboard import layout
from ostler.scoreboard.writer import CellWriter

# The histogram's bucket for what takes less than 4 ms, by its length in 1.024 µs.
QUICK = [layout.bucket_of(units << 10) for units in range(4096)]
QUICK_NS = len(QUICK) << 10


def status_class(code: object) -> int:
    """Which of the words of layout.STATUS_CLASSES counts an answer, whatever the app takes for a status.

    Where no one has checked that: a number out of range would count in another word.
    """
    return code // 100 if isinstance(code, int) and 0 <= code < 1000 else 9


class Lane:
    """One thread's lane.

    Attributes:
        words: the numbers that it counts; see scoreboard.layout.
        flight: those that tell of the request in the app; for threads the same words.
        line: the request line that its text shows.
        quick_until: a request that reaches the app by this time (CLOCK_MONOTONIC, ns) has not waited: what
            is in hand came at most layout.LEAST_QUEUED before it; 0: nobody knows.
    """

    __slots__ = ("flight", "line", "quick_until", "text", "words")

    def __init__(self, cell: CellWriter, thread: int) -> None:
        self.words, self.text = cell.lane(thread)
        self.flight = self.words
        self.words[layout.IDENT] = original.get_ident()
        self.line: Line | None = None
        self.quick_until = 0

    def show(self, line: Line) -> None:
        """Put a request's name into the scoreboard; only while nothing is in flight in the lane."""
        self.line = line
        name = line.method.encode("latin-1")[: layout.METHOD_SIZE]
        path = line.target[: layout.PATH_SIZE]
        self.text[: len(name)] = name
        self.text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path)] = path
        self.flight[layout.METHOD_LENGTH] = len(name)
        self.flight[layout.PATH_LENGTH] = len(path)


class Berth(Lane):
    """A greenlet's lane, which tells only of the request in the app: all counting is done in one lane.

    A worker has fewer lanes than it may have requests. What is in a berth without one (`number` 0) nobody
    sees, until it changes places with a younger one.

    Args:
        house: where is counted.
        cell: None: without a lane.
        number: of its lane.

    Attributes:
        greenlet: what serves in it; None: it is free.
        interrupted: what STARTED was in the request that was ended last.
    """

    __slots__ = ("greenlet", "interrupted", "number")

    def __init__(self, house: Lane, cell: CellWriter | None, number: int) -> None:
        self.words = house.words
        if cell is not None:
            self.flight, self.text = cell.lane(number)
        else:
            memory = memoryview(bytearray(layout.SLOT_SIZE))
            self.flight, self.text = memory[: layout.TEXT].cast("Q"), memory[layout.TEXT :]
        self.flight[layout.IDENT] = id(self)
        self.number = number
        self.line = None
        self.quick_until = 0
        self.greenlet: Any = None
        self.interrupted = 0

    def change_places(self, other: "Berth") -> None:
        """Exchange the lanes of two berths, whatever is in flight in them."""
        for_each = (self, other)
        told = [[berth.flight[word] for word in _TOLD] for berth in for_each]
        started = [berth.flight[layout.STARTED] for berth in for_each]
        for berth in for_each:
            berth.flight[layout.STARTED] = 0
        self.flight, self.text, self.number, other.flight, other.text, other.number = (
            *(other.flight, other.text, other.number),
            *(self.flight, self.text, self.number),
        )
        for berth, values, since in zip(for_each, told, started, strict=True):
            if berth.line is not None:
                berth.show(berth.line)
            for word, value in zip(_TOLD, values, strict=True):
                berth.flight[word] = value
            berth.flight[layout.STARTED] = since


# What else belongs to the request in flight.
_TOLD = (layout.IDENT, layout.EXTENDED_FOR, layout.EXTENDED_UNTIL)
