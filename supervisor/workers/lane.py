"""What a thread writes into its lane of the scoreboard."""

import threading

from supervisor.http1.request import Line
from supervisor.scoreboard import layout
from supervisor.scoreboard.writer import CellWriter

# The histogram's bucket for what takes less than 4 ms, by its length in 1.024 µs.
QUICK = [layout.bucket_of(units << 10) for units in range(4096)]
QUICK_NS = len(QUICK) << 10


class Lane:
    """One thread's lane.

    Attributes:
        words: its numbers; see scoreboard.layout.
        line: the request line that its text shows.
        quick_until: a request that reaches the app by this time (CLOCK_MONOTONIC, ns) has not waited: what
            is in hand came at most layout.LEAST_QUEUED before it; 0: nobody knows.
    """

    __slots__ = ("line", "quick_until", "text", "words")

    def __init__(self, cell: CellWriter, thread: int) -> None:
        self.words, self.text = cell.lane(thread)
        self.words[layout.IDENT] = threading.get_ident()
        self.line: Line | None = None
        self.quick_until = 0

    def show(self, line: Line) -> None:
        """Put a request's name into the scoreboard; only while nothing is in flight in the lane."""
        self.line = line
        name = line.method.encode("latin-1")[: layout.METHOD_SIZE]
        path = line.target[: layout.PATH_SIZE]
        self.text[: len(name)] = name
        self.text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path)] = path
        self.words[layout.METHOD_LENGTH] = len(name)
        self.words[layout.PATH_LENGTH] = len(path)
