"""Raw words of a cell, for worker code that does not use the accounting yet. Internal."""

import mmap

from ostler.scoreboard import layout

Words = memoryview  # cast to "Q": item i is the word i


class CellWriter:
    """A worker's cell.

    Attributes:
        header: the header's words, written by who leads the loop.
        threads: how many lanes serve requests.
    """

    def __init__(self, cell: mmap.mmap, threads: int) -> None:
        self.threads = threads
        self._memory = cell
        self._view = memoryview(cell)
        # By number, those that were asked for: `close` must find all views.
        self._lanes: dict[int, tuple[Words, memoryview]] = {}
        self.header: Words = self._view[: layout.PAGE].cast("Q")
        self.header[layout.SLOTS_IN_USE] = threads + 1

    def lane(self, thread: int) -> tuple[Words, memoryview]:
        """The words and the text (bytes) of one thread, counted from 0; written by that thread alone."""
        if (known := self._lanes.get(thread)) is not None:
            return known
        start = layout.PAGE + thread * layout.SLOT_SIZE
        words = self._view[start : start + layout.TEXT].cast("Q")
        text = self._view[start + layout.TEXT : start + layout.SLOT_SIZE]
        return self._lanes.setdefault(thread, (words, text))

    def close(self) -> None:
        """Unmap the memory, although references to parts of it remain: writing to these raises ValueError.

        A worker that goes on as a fork server calls it: libraries may keep what has served in it for ever.
        """
        for words, text in self._lanes.values():
            words.release()
            text.release()
        self._lanes.clear()
        self.header.release()
        self._view.release()
        self._memory.close()
