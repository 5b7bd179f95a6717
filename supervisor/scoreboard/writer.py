"""The worker's side of the scoreboard. Its words are plain memory: a write costs some 30 ns and no lock."""

import mmap

from supervisor.scoreboard import layout

Words = memoryview  # cast to "Q": item i is the word i


class CellWriter:
    """A worker's cell.

    Attributes:
        header: the header's words, written by who leads the loop.
        threads: how many lanes serve requests.
    """

    def __init__(self, cell: mmap.mmap, threads: int) -> None:
        self.threads = threads
        self._view = memoryview(cell)
        self.header: Words = self._view[: layout.PAGE].cast("Q")
        self.header[layout.LANES_IN_USE] = threads + 1

    def lane(self, thread: int) -> tuple[Words, memoryview]:
        """The words and the text (bytes) of one thread, counted from 0; written by that thread alone."""
        start = layout.PAGE + thread * layout.LANE_SIZE
        words = self._view[start : start + layout.TEXT].cast("Q")
        text = self._view[start + layout.TEXT : start + layout.LANE_SIZE]
        return words, text
