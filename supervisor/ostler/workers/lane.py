"""What a thread or a greenlet writes into its lane of the scoreboard."""

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
